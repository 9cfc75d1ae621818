"""The loop of online feedback: in the course of RL, sample pairs from the policy as it is, have them labelled, and refit the
reward model on all labels so far. A reward model that stays as it was is exploited where the policy has gone since.

    runs/NAME/refits/RUN/1/   preferences.jsonl (all so far), reward_model/
    runs/NAME/refits/RUN/2/
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import nn

from p3o.config import RefitConfig
from p3o.distributed import world
from p3o.distributed.sharding import gathered
from p3o.feedback.reward_model import RewardModel
from p3o.files import write_jsonl
from p3o.inputs import Pair
from p3o.models.language import load_tokenizer
from p3o.stages.context import PREFERENCES_FILE, RunContext, sample_texts
from p3o.stages.conversational import preference_rows, read_preference_rows
from p3o.stages.labelling import Labelled, label
from p3o.stages.reward import labelled_pairs
from p3o.stopping import Stopped, noted, stop_if_asked
from p3o.training.loop import fit
from p3o.training.reward_model import RewardTrainer

REFITS, REWARD_FOLDER = "refits", "reward_model"


class Refits:
    """The refits of one RL run.

    Args:
        run: the run's context.
        name: of the RL run.
        config: how often, how many pairs, labelled by whom.
        last: the last step of the RL run, after which nothing would learn from a refit.
    """

    def __init__(self, run: RunContext, name: str, config: RefitConfig, *, last: int) -> None:
        self.run, self.name, self.config, self.last = run, name, config, last

    def due(self, step: int) -> bool:
        """Whether the reward model is to be refitted after this step."""
        return 0 < step < self.last and step % self.config.every == 0

    def owed(self, step: int) -> bool:
        """Whether the run was stopped in the refit that is due after this step."""
        number = step // self.config.every
        return self.due(step) and not (self.run.folder.path / REFITS / self.name / str(number)).is_dir()

    def at(self, step: int) -> RewardModel | None:
        """The reward model that was in use after this step of an earlier attempt; None for the first one."""
        number = min(step, self.last - 1) // self.config.every
        return self._load(number) if number > 0 else None

    def refit(self, step: int, policy: nn.Module) -> RewardModel:
        """Sample, label, train anew from the SFT model on all labels; the result is saved whole before it is used.

        Of several processes the first samples and has labelled, and all train.

        Raises:
            Stopped: on all of them, if one has noted a signal meanwhile. The same refit begins again with the same pairs.
        """
        run, number = self.run, step // self.config.every
        new = self._labelled_by_first(policy, number)
        before = self._pairs(number - 1)
        pairs: list[Pair] = [*before, *((prompt, better, worse) for prompt, better, worse in new.preferences)]
        # The seeds of the first reward model: what changes is the data.
        torch.manual_seed(run.seed("reward head"))
        config = run.config.reward.train
        model = run.models.reward(run.sft_folder, trained=True)
        reward_model = RewardModel(model, run.tokenizer, layout=config.layout)
        trainer = RewardTrainer(reward_model, pairs, config, seed=run.seed(f"reward {number}"))
        with run.progress.stage(f"reward {number}", total=trainer.total) as advance:

            def tell(_: int, metrics: Mapping[str, int | float]) -> None:
                advance(1, **metrics)
                # Whichever process was asked, all stop after the same update.
                stop_if_asked(f"the reward model was refitted for rl {self.name}", max(world().gather(noted())))

            fit(trainer, tell)
        row = {"stage": "refit", "run": self.name, "step": step, "pairs": len(pairs), "new": len(new.preferences)}
        run.folder.metrics(row | {"ties": new.ties, "unlabelled": new.unlabelled})
        with run.folder.directory(f"{REFITS}/{self.name}/{number}") as folder:
            if world().first:
                write_jsonl(folder / PREFERENCES_FILE, preference_rows(pairs, run.inputs.conversations))
            run.models.save(reward_model.model, run.tokenizer, folder / REWARD_FOLDER)
        return reward_model

    def _labelled_by_first(self, policy: nn.Module, number: int) -> Labelled:
        candidates: list[Pair] = []
        stopped: list[Stopped] = []

        def work() -> list[Any] | None:
            try:
                return list(self._label(candidates, number))
            except Stopped as stop:  # the others wait, and are to save with the first
                stopped.append(stop)
                return None

        # A sharded policy is whole while it samples, and not while somebody labels.
        with gathered(policy):
            world().wait_for_first(lambda: candidates.extend(self._candidates(policy, number)))
        found = world().done_by_first(work)
        told = world().from_first([stopped[0].signal, str(stopped[0])] if stopped else None)
        if told is not None:
            raise Stopped(*told)
        return Labelled(*found)

    def _seed(self, number: int) -> int:
        return self.run.seed(f"refit {self.name} {number}")

    def _candidates(self, policy: nn.Module, number: int) -> list[Pair]:
        """Prompts, each with two different responses of the policy."""
        run, seed = self.run, self._seed(number)
        order = torch.randperm(len(run.inputs.prompts), generator=torch.Generator().manual_seed(seed))
        responses = self.config.responses_per_prompt
        prompts = [run.inputs.prompts[i] for i in order[: self.config.prompts].tolist()]
        groups = sample_texts(run, policy, prompts, responses=responses, seed=seed)
        return [
            (prompt, a, b)
            for prompt, group in zip(prompts, groups, strict=True)
            for a, b in combinations(dict.fromkeys(group), 2)
        ][: self.config.pairs]

    def _label(self, candidates: list[Pair], number: int) -> Labelled:
        run, embedded = self.run, self.run.config.embedded
        return label(
            self.config.labeller,
            candidates,
            gold=run.inputs.gold,
            scale=embedded.label_scale if embedded is not None else 1.0,
            seed=self._seed(number),
            folder=run.folder.path,
            progress=run.progress,
            conversations=run.inputs.conversations,
        )

    def _pairs(self, number: int) -> list[Pair]:
        """All labels after this many refits."""
        if number == 0:
            return labelled_pairs(self.run)
        path = self.run.folder.path / REFITS / self.name / str(number) / PREFERENCES_FILE
        return read_preference_rows(path, self.run.tokenizer)

    def _load(self, number: int) -> RewardModel:
        path = self.run.required(f"{REFITS}/{self.name}/{number}/{REWARD_FOLDER}", "p3o rl")
        model = self.run.models.reward(path, trained=False)
        return RewardModel(model, load_tokenizer(path), layout=self.run.config.reward.train.layout)
