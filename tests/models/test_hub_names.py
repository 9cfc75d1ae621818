"""A model that is not there is told in one line, after one question; what may be there is left to the loading."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from p3o.errors import P3OError
from p3o.models import hub_names
from p3o.models.hub_names import refuse_unknown


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Online, with an empty cache, and a hub that answers as the name says."""
    questions: list[str] = []
    reply: Any = SimpleNamespace(headers={}, request=None, status_code=404)

    def answer(url: str, **_: object) -> None:
        questions.append(url)
        if "absent" in url:
            raise errors.RepositoryNotFoundError("404", response=reply)
        if "gated" in url:
            raise errors.GatedRepoError("401", response=reply)
        if "broken" in url:
            raise errors.HfHubHTTPError("503", response=reply)
        if "far" in url:
            raise OSError("Name or service not known")

    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    hub_names._asked_of_the_hub.cache_clear()
    return questions


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "neither a local folder nor a hub model that you can access"),
        ("owner/far", r"not a local folder, and the hub cannot be reached \(Name or service not known\)"),
    ],
)
def test_what_is_not_there_is_told_after_one_question(asked: list[str], name: str, said: str) -> None:
    for _ in range(3):  # the tokenizer, the configuration, the weights
        with pytest.raises(P3OError, match=f"^model '{name}': {said}; give a folder"):
            refuse_unknown(name, f"model '{name}'")
    assert len(asked) == 1
    assert asked[0].endswith(f"/{name}/resolve/main/config.json")


@pytest.mark.parametrize("name", ["there", "owner/gated", "owner/broken"])
def test_what_may_be_there_is_left_to_the_loading(asked: list[str], name: str) -> None:
    refuse_unknown(name, "model")
    assert len(asked) == 1


def test_a_path_that_is_no_hub_name_is_not_asked_about(asked: list[str], tmp_path: Path) -> None:
    for path in ("runs/mine/sft", "./mine", str(tmp_path / "mine")):
        with pytest.raises(P3OError, match="there is no such folder"):
            refuse_unknown(path, "model")
    refuse_unknown(str(tmp_path), "model")
    assert asked == []


def test_what_is_in_the_cache_or_offline_is_not_asked_about(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "snapshot/config.json")
    refuse_unknown("absent", "model")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    refuse_unknown("absent", "model")
    assert asked == []
