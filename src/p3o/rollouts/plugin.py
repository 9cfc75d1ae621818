"""What vLLM calls at its start (entry point ``vllm.general_plugins``): registers the gloo weight transfer under "p3o_gloo".

Installed with p3o in vLLM's environment; nothing else of p3o is imported there.
"""

import contextlib

BACKEND = "p3o_gloo"
"""As in ``--weight-transfer-config '{"backend": "p3o_gloo"}'``."""


def register() -> None:
    """Register once per process; vLLM calls it in every process that it starts, sometimes twice."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    with contextlib.suppress(ValueError):  # registered already
        WeightTransferEngineFactory.register_engine(BACKEND, "p3o.rollouts.engine", "GlooWeightTransferEngine")
