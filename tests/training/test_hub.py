"""Publishing: what cannot work is told before training. The hub's client is stood in for; no test opens a connection."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from p3o.cli import main
from p3o.errors import P3OError
from p3o.training.hub import HubTarget


class StandIn:
    """HfApi with a memory."""

    calls: list[tuple[str, Any]] = []  # noqa: RUF012 (one memory for all instances is the point)
    failure: Exception | None = None

    def create_repo(self, repository: str, *, private: bool | None, exist_ok: bool) -> None:
        self.calls.append(("create", (repository, private, exist_ok)))
        if self.failure is not None:
            raise self.failure

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, repo_type: str) -> Any:
        self.calls.append(("upload", (repo_id, Path(folder_path), repo_type)))
        assert (Path(folder_path) / "README.md").is_file(), "the card is published with the model"
        if self.failure is not None:
            raise self.failure
        return SimpleNamespace(repo_url=f"https://hub/{repo_id}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """The stand-in, logged in and online."""
    StandIn.calls, StandIn.failure = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", StandIn)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_of_no_one")
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    return StandIn


@pytest.mark.parametrize("private", [None, True])
def test_the_repository_is_made_first_and_filled_later(
    hub: type[StandIn], tmp_path: Path, private: bool | None
) -> None:
    (tmp_path / "README.md").write_text("card")
    target = HubTarget("someone/model", private)
    target.prepare()
    assert target.push(tmp_path, message="a message") == "https://hub/someone/model"
    assert hub.calls == [("create", ("someone/model", private, True)), ("upload", ("someone/model", tmp_path, "model"))]
    assert target.named("ppo") == HubTarget("someone/model-ppo", private)


def test_without_a_login_it_is_refused(hub: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(P3OError, match="not logged in to the hub; run `hf auth login` or set HF_TOKEN"):
        HubTarget("someone/model").prepare()
    assert hub.calls == []


def test_offline_it_is_refused(hub: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    with pytest.raises(P3OError, match="HF_HUB_OFFLINE is set; unset it or push later"):
        HubTarget("someone/model").prepare()
    assert hub.calls == []


@pytest.mark.parametrize("name", ["a/b/c", "some one", "-x", ""])
def test_an_impossible_name_is_refused(hub: type[StandIn], name: str) -> None:
    with pytest.raises(P3OError, match="--push-to-hub"):
        HubTarget(name).prepare()
    assert hub.calls == []


def test_what_the_hub_says_is_told(hub: type[StandIn], tmp_path: Path) -> None:
    hub.failure = OSError("403 Forbidden: no rights.\nmore")
    with pytest.raises(P3OError, match=r"the hub refuses: 403 Forbidden: no rights$"):
        HubTarget("someone/model").prepare()
    (tmp_path / "README.md").write_text("card")
    with pytest.raises(P3OError, match=f"the complete model is in {tmp_path}; upload it with `hf upload someone/model"):
        HubTarget("someone/model").push(tmp_path, message="m")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a model, prompts and a reward."""
    from p3o.data.embedded.language import build_model, build_tokenizer

    monkeypatch.chdir(tmp_path)
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained("model")
    tokenizer.save_pretrained("model")
    Path("p.jsonl").write_text("".join(f'{{"prompt": "Human: How do I brew tea {i} ?"}}\n' for i in range(12)))
    Path("rewards_for_the_hub.py").write_text("def zero(prompts, responses):\n    return [0.0] * len(responses)\n")
    return tmp_path


RL = (
    "rl --model model --prompts p.jsonl --reward-function rewards_for_the_hub:zero --steps 1 --prompts-per-step 2 "
    "--max-new-tokens 2 --name a --push-to-hub someone/tea"
)


def test_rl_publishes_every_policy_with_its_card(
    hub: type[StandIn], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RL.split(), "--private", "--set", "rl.runs={x: {algorithm: ppg}, y: {algorithm: rloo}}"]) == 0
    assert [name for name, _ in hub.calls] == ["create", "create", "upload", "upload"]
    assert hub.calls[1][1] == ("someone/tea-y", True, True)
    assert hub.calls[3][1] == ("someone/tea-y", Path("runs/a/rl/y"), "model")
    assert "published https://hub/someone/tea-x" in capsys.readouterr().out


def test_it_is_refused_before_training_starts(
    hub: type[StandIn], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(RL.split()) == 2
    assert "error: --push-to-hub someone/tea: not logged in" in capsys.readouterr().err
    assert not Path("runs").exists()
    command = "reward --model model --name b --push-to-hub someone/tea --set reward.model=given"
    assert main(command.split()) == 2
    assert "the reward is given, so no reward model is trained" in capsys.readouterr().err
