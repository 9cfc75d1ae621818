"""The stage that fine-tunes the model on demonstrations."""

from p3o.inputs import starting_model
from p3o.models.language import load_language_model, save_model
from p3o.models.tokens import pad_id
from p3o.stages.context import RunContext
from p3o.training.sft import completion_loss, train_sft


def sft(run: RunContext) -> None:
    """Supervised fine-tuning; skipped if the configuration has none."""
    config = run.config.sft
    if config is None:
        run.progress.print("sft: skipped, RL starts from the model as it is")
        return
    with run.folder.stage("sft"):
        start = starting_model(run.config, run.config.seed)
        model = (
            start[0].to(run.device).eval()
            if start is not None
            else load_language_model(str(run.config.model), device=run.device)
        )
        rows = run.encode(run.inputs.demonstrations)
        steps = config.steps if config.steps is not None else max(1, len(rows) // config.batch_size)
        with run.progress.stage("sft", total=steps) as advance:

            def log(step: int, metrics: dict[str, float]) -> None:
                run.folder.metrics({"stage": "sft", "step": step, **metrics})
                advance(1, **metrics)

            fill = pad_id(run.tokenizer)
            train_sft(model, rows, config, fill=fill, seed=run.seed("sft"), log=log)
        heldout = run.encode(run.inputs.heldout_demonstrations)
        if heldout:
            loss = completion_loss(model, heldout, fill=fill, batch_size=config.micro_batch_size)
            run.folder.metrics({"stage": "sft", "step": steps, "heldout_loss": loss})
        with run.folder.directory("sft") as target:
            save_model(model, run.tokenizer, target)
