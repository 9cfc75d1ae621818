"""The stage that fine-tunes the model on demonstrations."""

from collections.abc import Mapping

from p3o.models.tokens import pad_id
from p3o.stages.context import RunContext
from p3o.training.optimisation import unseen
from p3o.training.sft import SFTTrainer, completion_loss


def sft(run: RunContext) -> None:
    """Supervised fine-tuning; skipped if the configuration has none."""
    config = run.config.sft
    if config is None:
        run.progress.print("sft: skipped, RL starts from the model as it is")
        return
    with run.folder.stage("sft", resume=run.resume):
        model = run.models.untrained()
        fill = pad_id(run.tokenizer)
        rows = run.encode(run.inputs.demonstrations)
        trainer = SFTTrainer(model, rows, config, fill=fill, seed=run.seed("sft"))
        run.progress.print(f"sft: {run.processes}")
        if left := unseen(len(rows), config.batch_size, config.steps):
            run.progress.print(f"sft: {left}")
        heldout = run.encode(run.inputs.heldout_demonstrations)

        def hold_out_loss(step: int) -> None:
            size = config.micro_batch_size
            loss = completion_loss(model, heldout, fill=fill, batch_size=size, layout=trainer.layout)
            run.folder.metrics({"stage": "sft", "step": step, "heldout_loss": loss})
            run.keep_best("sft", step, {"loss": loss}, lambda seen: -seen["loss"], model)

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
            run.models.save(model, run.tokenizer, target)
        run.forget("sft")
