"""The configurations that come with the package are valid, and hold the settings that were published."""

import re
from importlib.resources import files

import pytest

from p3o.config import RunConfig
from p3o.config_loading import dump_config, load_config, load_packaged_config
from p3o.errors import P3OError

NAMES = sorted(path.name.removesuffix(".yaml") for path in (files("p3o") / "configs").iterdir())
READY = [name for name in NAMES if not name.startswith("demo")]


def test_both_tasks_are_there_at_several_sizes() -> None:
    assert READY == [
        "hh_pythia_1b",
        "hh_pythia_6.9b",
        "hh_qwen2.5_0.5b",
        "tldr_pythia_1b",
        "tldr_pythia_6.9b",
        "tldr_smollm2_135m",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_configuration_is_valid_and_survives_being_written(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = load_packaged_config(name, [], RunConfig)
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path, [], RunConfig) == config


@pytest.mark.parametrize("name", READY)
def test_every_stage_has_its_source_and_bad_rows_are_counted(name: str) -> None:
    data = load_packaged_config(name, [], RunConfig).data
    assert set(data.sources()) == {"prompts", "heldout_prompts", "demonstrations", "preferences"}
    assert data.bad_rows == "skip"
    adapter = {"tldr": "summarize_feedback", "hh": "hh"}[name.split("_")[0]]
    assert data.sources()["preferences"].adapter == adapter


@pytest.mark.parametrize("name", ["tldr_pythia_1b", "tldr_pythia_6.9b"])
def test_tldr_holds_the_settings_of_the_n_plus_paper(name: str) -> None:
    """arXiv:2403.17031: one learning rate, 512 + 53 tokens, 512 responses, 4 epochs, KL .05."""
    config = load_packaged_config(name, [], RunConfig)
    assert config.sft is not None
    training = config.rl.training
    assert config.sft.learning_rate == config.reward.train.learning_rate == training.learning_rate == 3e-6
    assert (config.data.max_prompt_tokens, training.max_new_tokens) == (512, 53)
    assert training.prompts_per_step * training.responses_per_prompt == 512
    assert (training.epochs, training.temperature, training.missing_eos_penalty) == (4, 0.7, 1.0)
    ppo = config.rl.runs["ppo"].settings
    assert (ppo["beta"], ppo["lam"]) == (0.05, 0.95)
    assert config.rl.training_of("online_dpo").learning_rate == 5e-7
    assert config.rl.runs["online_dpo"].settings["beta"] == 0.1


@pytest.mark.parametrize(
    ("setting", "told"),
    [("betta", "p3o_v2 has no such setting; did you mean 'beta'?"), ("kl_coef", "p3o_v2 has no such setting; known: ")],
)
def test_an_unknown_setting_of_an_algorithm_is_told_with_what_there_is(setting: str, told: str) -> None:
    with pytest.raises(P3OError, match=re.escape(f"'rl.runs.p3o_v2.settings.{setting}': {told}")):
        load_packaged_config("demo", [f"rl.runs.p3o_v2.settings.{setting}=1"], RunConfig)


@pytest.mark.parametrize("name", ["hh_pythia_1b", "hh_pythia_6.9b"])
def test_hh_holds_the_settings_of_trlx(name: str) -> None:
    config = load_packaged_config(name, [], RunConfig)
    training = config.rl.training
    assert training.learning_rate == 8e-6
    assert training.prompts_per_step * training.responses_per_prompt == 64
    assert training.max_new_tokens == 128
    assert config.data.max_prompt_tokens == 1024 - 128
    assert {run.settings["beta"] for name, run in config.rl.runs.items() if name != "online_dpo"} == {0.05}


@pytest.mark.parametrize("name", ["tldr_pythia_1b", "tldr_pythia_6.9b"])
def test_tldr_holds_the_optimiser_of_the_n_plus_paper(name: str) -> None:
    """AdamW with ε 1e-5 and torch's decays; one pass over the data for fine-tuning and the reward model."""
    config = load_packaged_config(name, [], RunConfig)
    assert config.sft is not None
    stages = (config.sft, config.reward.train, config.rl.training)
    assert [(stage.adam_epsilon, stage.adam_betas) for stage in stages] == [(1e-5, (0.9, 0.999))] * 3
    assert config.sft.steps is config.reward.train.steps is None


@pytest.mark.parametrize("name", READY)
def test_a_dialogue_stops_where_the_next_turn_begins_and_a_summary_does_not(name: str) -> None:
    training = load_packaged_config(name, [], RunConfig).rl.training
    assert training.stop == (("Human:",) if name.startswith("hh") else ())
