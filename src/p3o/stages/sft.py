"""The stage that fine-tunes the model on demonstrations."""

from collections.abc import Mapping

from p3o.inputs import starting_model
from p3o.models.language import load_language_model, save_model
from p3o.models.tokens import pad_id
from p3o.stages.context import RunContext
from p3o.training.sft import SFTTrainer, completion_loss


def sft(run: RunContext) -> None:
    """Supervised fine-tuning; skipped if the configuration has none."""
    config = run.config.sft
    if config is None:
        run.progress.print("sft: skipped, RL starts from the model as it is")
        return
    with run.folder.stage("sft", resume=run.resume):
        start = starting_model(run.config, run.config.seed)
        model = (
            start[0].to(run.device).eval()
            if start is not None
            else load_language_model(str(run.config.model), device=run.device)
        )
        fill = pad_id(run.tokenizer)
        rows = run.encode(run.inputs.demonstrations)
        trainer = SFTTrainer(model, rows, config, fill=fill, seed=run.seed("sft"))
        heldout = run.encode(run.inputs.heldout_demonstrations)

        def hold_out_loss(step: int) -> None:
            loss = completion_loss(model, heldout, fill=fill, batch_size=config.micro_batch_size)
            run.folder.metrics({"stage": "sft", "step": step, "heldout_loss": loss})
            run.keep_best("sft", step, -loss, model)

        with run.progress.stage("sft", total=trainer.total) as advance:

            def tell(step: int, metrics: Mapping[str, int | float]) -> None:
                run.folder.metrics({"stage": "sft", "step": step, **metrics})
                advance(1, **metrics)
                if heldout and (step == trainer.total or (config.evaluate_every and step % config.evaluate_every == 0)):
                    hold_out_loss(step)

            run.fit(
                "sft",
                trainer,
                tell,
                advance=advance,
                rolls_back=config.on_fault == "rollback",
                owns=lambda row: row.get("stage") == "sft",
            )
        with run.folder.directory("sft") as target:
            save_model(model, run.tokenizer, target)
        run.forget("sft")
