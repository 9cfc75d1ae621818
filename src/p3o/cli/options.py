"""The settings that each stage's command takes as options of their own: which key of the configuration an option stands for.

`p3o rl --help` shall come at once, and the schema stands beside code that imports torch; so this table repeats types and
defaults, and a test holds it to the schema.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

Given = Mapping[str, Any]
"""Options that were given, by flag."""


@dataclass(frozen=True)
class SettingOption:
    """An option for one key of the configuration.

    Attributes:
        flag: as it is typed, without a leading ``--``.
        key: dotted; "" for an option that ``settings.py`` reads itself.
        type: of the value.
        help: in a line, without the default.
        default: the schema's, as it is shown; None where there is nothing to show.
        metavar: what stands for the value in the help.
    """

    flag: str
    key: str
    type: type
    help: str
    default: str | None = None
    metavar: str | None = None


def _file(flag: str, help_text: str) -> SettingOption:
    return SettingOption(flag, f"data.{flag.replace('-', '_')}", str, help_text, metavar="FILE")


MODEL = SettingOption("model", "model", str, "Folder or hub name of the language model to start from.", metavar="MODEL")
SEED = SettingOption("seed", "seed", int, "Random seed.", "0", "N")
DEVICE = SettingOption("device", "device", str, "Device to compute on: auto, cpu, cuda or cuda:1.", "auto", "NAME")
PROMPTS = _file("prompts", "Training prompts, one {prompt} per line.")
HELDOUT = _file("heldout-prompts", "Prompts for evaluation. If not given, some of the training prompts are held out.")
DEMONSTRATIONS = _file("demonstrations", "Demonstrations, one {prompt, completion} per line.")
PREFERENCES = _file("preferences", "Preferences, one {prompt, chosen, rejected} per line.")
REWARD_MODEL = SettingOption(
    "reward-model",
    "reward.model",
    str,
    "Reward model, a sequence classifier with one label: folder or hub name.",
    metavar="MODEL",
)
REWARD_FUNCTION = SettingOption(
    "reward-function",
    "reward.function",
    str,
    "Python function of (prompts, responses) that returns the rewards.",
    metavar="MODULE:NAME",
)
REWARD_URL = SettingOption(
    "reward-url", "reward.service.url", str, "Address of a reward service (p3o serve-reward).", metavar="URL"
)
ALGORITHM = SettingOption(
    "algorithm", "", str, "Train with only this algorithm: p3o_v2, p3o_v1, ppo, …", "p3o_v2", "NAME"
)
BETA = SettingOption("beta", "", float, "β, weight of the KL penalty towards the starting model.", "0.1", "X")
EPSILON = SettingOption("epsilon", "", float, "Clip range.", "0.2", "X")
MAX_NEW_TOKENS = SettingOption(
    "max-new-tokens", "rl.training.max_new_tokens", int, "Maximum length of a response in tokens.", "64", "N"
)
TEMPERATURE = SettingOption("temperature", "rl.training.temperature", float, "Sampling temperature.", "1.0", "X")
RESPONSES = SettingOption(
    "responses-per-prompt", "rl.training.responses_per_prompt", int, "K, responses sampled per prompt.", "2", "N"
)
ENGINE = SettingOption(
    "engine",
    "engine.name",
    str,
    "What starts the training processes: local, or ray (Ray Train workers).",
    "local",
    "NAME",
)
WORKERS = SettingOption("workers", "engine.workers", int, "With --engine ray: number of training processes.", "1", "N")
RAY_ADDRESS = SettingOption(
    "ray-address",
    "engine.address",
    str,
    "HOST:PORT of a Ray cluster, or auto. If not given, one is started on this machine.",
    metavar="ADDRESS",
)
ENGINE_SETTINGS = (ENGINE, WORKERS, RAY_ADDRESS)
"""Who starts the processes that train."""

ALGORITHM_SETTINGS = (BETA, EPSILON)
"""Settings of an algorithm, which every run of the configuration gets."""


def _rl(flag: str, kind: type, help_text: str, default: str | None, metavar: str = "N") -> SettingOption:
    return SettingOption(flag, f"rl.training.{flag.replace('-', '_')}", kind, help_text, default, metavar)


def _supervised(section: str, rows: str, rate: str) -> tuple[SettingOption, ...]:
    """The options that supervised fine-tuning and the training of the reward model share."""
    return (
        SettingOption("learning-rate", f"{section}.learning_rate", float, "Peak learning rate.", rate, "X"),
        SettingOption(
            "schedule",
            f"{section}.schedule",
            str,
            "Learning rate schedule: constant, linear or cosine.",
            "cosine",
            "NAME",
        ),
        SettingOption(
            "warmup-fraction",
            f"{section}.warmup_fraction",
            float,
            "Share of the updates spent warming up the learning rate.",
            "0.03",
            "X",
        ),
        SettingOption("weight-decay", f"{section}.weight_decay", float, "Decoupled weight decay.", "0.0", "X"),
        SettingOption(
            "steps",
            f"{section}.steps",
            int,
            "Number of updates. If not given, one pass over the rows, in whole batches.",
            None,
            "N",
        ),
        SettingOption("batch-size", f"{section}.batch_size", int, f"{rows} per update.", "32", "N"),
        SettingOption("micro-batch-size", f"{section}.micro_batch_size", int, f"{rows} per forward pass.", "32", "N"),
    )


STAGE_OPTIONS: dict[str, tuple[SettingOption, ...]] = {
    "sft": (MODEL, DEMONSTRATIONS, *_supervised("sft", "Demonstrations", "2e-05"), SEED, DEVICE, *ENGINE_SETTINGS),
    "sample": (MODEL, PROMPTS, MAX_NEW_TOKENS, TEMPERATURE, SEED, DEVICE),
    "reward": (MODEL, PREFERENCES, *_supervised("reward.train", "Pairs", "1e-05"), SEED, DEVICE, *ENGINE_SETTINGS),
    "rl": (
        MODEL,
        PROMPTS,
        HELDOUT,
        REWARD_MODEL,
        REWARD_FUNCTION,
        REWARD_URL,
        ALGORITHM,
        BETA,
        EPSILON,
        _rl("learning-rate", float, "Peak learning rate of the policy.", "1e-06", "X"),
        _rl("steps", int, "Number of RL steps; each samples a batch of prompts and learns from it.", "100"),
        _rl("prompts-per-step", int, "Prompts sampled per step.", "16"),
        RESPONSES,
        _rl("epochs", int, "Passes over a step's samples.", "2"),
        _rl("minibatches", int, "Updates per pass.", "2"),
        _rl("kl-stop", float, "End a step's updates early once the policy has moved this far.", "0.05", "X"),
        MAX_NEW_TOKENS,
        TEMPERATURE,
        SEED,
        DEVICE,
        *ENGINE_SETTINGS,
    ),
    "evaluate": (
        MODEL,
        PROMPTS,
        HELDOUT,
        REWARD_MODEL,
        REWARD_FUNCTION,
        REWARD_URL,
        SettingOption("count", "evaluation.prompts", int, "Number of held-out prompts to evaluate on.", "512", "N"),
        SettingOption("batch-size", "evaluation.batch_size", int, "Prompts per forward pass.", "128", "N"),
        MAX_NEW_TOKENS,
        TEMPERATURE,
        SEED,
        DEVICE,
    ),
    "report": (),
    "run": (
        MODEL,
        PROMPTS,
        HELDOUT,
        DEMONSTRATIONS,
        PREFERENCES,
        REWARD_MODEL,
        REWARD_FUNCTION,
        REWARD_URL,
        ALGORITHM,
        BETA,
        EPSILON,
        RESPONSES,
        MAX_NEW_TOKENS,
        TEMPERATURE,
        SEED,
        DEVICE,
        *ENGINE_SETTINGS,
    ),
}


def takes(
    options: tuple[SettingOption, ...], *, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command: it gets these options too, those that were given in its argument ``given``, by flag.

    Args:
        options: to add.
        without: parameters of the function that are no options of this command; they keep their defaults.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(**arguments: Any) -> None:
            values = {option.flag: arguments.pop(_parameter(option)) for option in options}
            function(**arguments, given={flag: value for flag, value in values.items() if value is not None})

        signature = inspect.signature(function, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name not in ("given", *without)]
        added = [
            inspect.Parameter(
                _parameter(option), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(option)
            )
            for option in options
        ]
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        command.__signature__ = signature.replace(parameters=[*added, *own])  # type: ignore[attr-defined]
        command.__doc__ = function.__doc__
        return command

    return decorate


def _parameter(option: SettingOption) -> str:
    return option.flag.replace("-", "_")


def _annotation(option: SettingOption) -> Any:
    shown = option.help if option.default is None else f"{option.help} (default: {option.default})"
    return Annotated[
        option.type | None,
        typer.Option(f"--{option.flag}", metavar=option.metavar, help=shown, rich_help_panel="Settings"),
    ]
