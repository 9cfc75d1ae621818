"""What vLLM's CPU workers need after new weights (runs inside vLLM only).

On a CPU, vLLM (0.32) keeps a packed copy of every matrix, the output head's too. Where the head shares its weights with the
embedding, new weights arrive through the embedding, and the head goes on with its packed copy of the old ones: log-probs are
then wrong by as much as the embedding has moved. Our gloo engine repacks the head itself; for weights that come by files, start
the server with ``--worker-extension-cls p3o.rollouts.worker.Repacking``.
"""

from typing import Any


def repack_heads(model: Any) -> None:
    """Pack the embeddings and heads of a model anew; nothing happens where nothing is packed (on a GPU)."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        # Only embeddings and heads can be tied; linear layers are packed when their own weights arrive.
        if "cpu_linear" in vars(module) and hasattr(method, "tie_weights"):
            method.process_weights_after_loading(module)


class Repacking:
    """Methods that ``/collective_rpc`` finds on every worker beside vLLM's own."""

    model_runner: Any

    def p3o_repack(self) -> None:
        """Pack the heads anew, after ``reload_weights``."""
        repack_heads(self.model_runner.get_model())
