"""The demo's RL stage and reward model with padded rows and with the rows that the probe chooses, in turns.

    p3o demo --output runs                      # once: an SFT model and a reward model of the embedded task
    python benchmarks/demo_layouts.py runs/demo

Prints CPU seconds of one thread: of an RL step of P3O-V2 as the demo configures it, and of an update of the reward model.
"""

import sys
from pathlib import Path
from statistics import median
from time import process_time

import torch

from p3o.algorithms import make_algorithm
from p3o.bench.results import commit, machine
from p3o.config import RunConfig
from p3o.config_loading import load_packaged_config
from p3o.data.embedded import task
from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.files import read_jsonl
from p3o.models.language import frozen_copy, load_language_model, load_tokenizer
from p3o.models.probe import LayoutChoice
from p3o.training.online import OnlineTrainer
from p3o.training.reward_model import RewardTrainer

TURNS = 6
"""The first warms up and is not counted."""

CHOICES: tuple[LayoutChoice, ...] = ("padded", "auto")


def main(folder: Path) -> None:
    """Time both stages on the models of this run."""
    torch.set_num_threads(1)
    cpu, config = torch.device("cpu"), load_packaged_config("demo", [], RunConfig)
    tokenizer = load_tokenizer(str(folder / "sft"))
    prompts = task.prompts(400, seed=0, split="train")
    pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in read_jsonl(folder / "preferences.jsonl")]

    def rl(layout: LayoutChoice) -> OnlineTrainer:
        policy = load_language_model(str(folder / "sft"), device=cpu)
        reward = RewardModel(load_reward_model(str(folder / "reward_model"), device=cpu), tokenizer, layout=layout)
        training = config.rl.training.model_copy(update={"layout": layout})
        algorithm = make_algorithm("p3o_v2")
        return OnlineTrainer(policy, frozen_copy(policy), tokenizer, algorithm, reward, prompts, training, seed=0)

    def preferences(layout: LayoutChoice) -> RewardTrainer:
        torch.manual_seed(0)
        reward = RewardModel(load_reward_model(str(folder / "sft"), device=cpu), tokenizer, layout=layout)
        return RewardTrainer(reward, pairs, config.reward.train, seed=0)

    print(commit(), machine())
    for name, make in (("RL step", rl), ("reward-model update", preferences)):
        trainers = {choice: make(choice) for choice in CHOICES}
        seconds: dict[str, list[float]] = {choice: [] for choice in CHOICES}
        for _ in range(TURNS):
            for choice, trainer in trainers.items():
                start = process_time()
                trainer.step()
                seconds[choice].append(process_time() - start)
        padded, auto = (seconds[choice][1:] for choice in CHOICES)
        ratio = median(a / b for a, b in zip(padded, auto, strict=True))
        print(f"{name}: padded {median(padded):.2f} s, auto {median(auto):.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
