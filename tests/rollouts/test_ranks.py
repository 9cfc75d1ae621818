"""Two learner processes and vLLM servers: the numbers of one process with the same servers, whatever becomes of the servers.

Learner and servers compute in float64, so what differs is the order of sums; see ``tests/distributed/test_learner.py``.
"""

import itertools
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.distributed import learner
from tests.distributed.learner import MODES, PROMPTS, TOKENIZER
from tests.distributed.ranks import free_port, on_ranks
from tests.rollouts import served
from tests.rollouts.fake import FakeVLLM

from p3o.files import read_jsonl, write_jsonl

TOLERANCE = 1e-9
OF_THE_CLOCK = {"push_seconds", "rollout_seconds", "probe_difference"}
"""Sampling ahead, the last one, too: a push is told of by the step in which it was over."""
OF_A_DEATH = {"asked_again", "servers_lost", "servers_rejoined", "wrong_version", "busy", "broken"}

OF_A_START = {"policy_version", "servers"}
"""One push more than without the interruption; and servers are at work only when there is something to sample."""

Found = dict[str, Any]


def server() -> FakeVLLM:
    """With the policy's start for its base, which adapters need."""
    return FakeVLLM(learner.language_model().double(), TOKENIZER)


def dies_in_the_middle(fake: FakeVLLM, group: int) -> None:
    """Killed when it is asked for this group, it starts again a moment later."""
    asked, lock = itertools.count(1), threading.Lock()

    def before(body: dict[str, Any]) -> None:
        if "prompt_logprobs" in body:
            return
        with lock:
            number = next(asked)
        if number == group:
            fake.kill()
            threading.Timer(0.1, fake.start).start()
            raise OSError("killed")

    fake.before = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def fakes() -> Iterator[list[FakeVLLM]]:
    """Two that stay, two that die once, and one that only gets adapters."""
    started = [server() for _ in range(5)]
    dies_in_the_middle(started[2], 7)  # in the second step
    dies_in_the_middle(started[3], 12)  # while the second step trains
    yield started
    for fake in started:
        fake.end()
        assert fake.errors == []


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    """Of a run by the command line."""
    learner.language_model().save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    content = {
        "name": "run",
        "model": str(folder / "model"),
        "device": "cpu",
        "data": {"prompts": str(folder / "prompts.jsonl")},
        "reward": {"function": "tests.distributed.test_torchrun:reward"},
        "rl": {
            "training": {"steps": 3, "prompts_per_step": 4, "max_new_tokens": 8, "max_staleness": 1},
            "runs": {"p3o_v2": {"algorithm": "p3o_v2"}},
        },
        "evaluation": {"prompts": 4, "every": 3, "followed_prompts": 0},
        "parallel": {"mode": "fsdp"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def urls(fakes: list[FakeVLLM]) -> list[str]:
    return [fake.url for fake in fakes[:2]]


@pytest.fixture(scope="module")
def dead() -> list[str]:
    return [f"http://127.0.0.1:{free_port()}"]


@pytest.fixture(scope="module")
def brief_one(folder: Path, urls: list[str]) -> Found:
    """What one process finds."""
    with served.served(urls, folder) as runs:
        found = {"gloo": learner.taken(runs(), 2), "ahead 1": learner.taken(runs(max_staleness=1, steps=4), 4)}
        found["gloo evaluated"] = served.evaluated(runs(), 2)
        found["ahead 1 evaluated"] = served.evaluated(runs(max_staleness=1, steps=4), 4)
        return found


@pytest.fixture(scope="module")
def brief(folder: Path, urls: list[str], dead: list[str]) -> list[Found]:
    """What two ranks found."""
    return checked(on_ranks(served.briefly, folder, folder, urls, dead))


@pytest.fixture(scope="module")
def one(folder: Path, urls: list[str], brief_one: Found) -> Found:
    """All that one process finds, and the checkpoints that two go on from."""
    found = dict(brief_one)
    with served.served(urls, folder) as runs:
        first = runs()
        first.step()
        learner.saved(first, folder / "one")
        found["saved"] = learner.taken(first, 1)
        found["ahead 2"] = learner.taken(runs(max_staleness=2, steps=4), 4)
        found["arrival"] = learner.taken(runs(max_staleness=1, steps=3, stale_ratio="arrival"), 3)
        early = runs(max_staleness=1, steps=3)
        early.step()
        learner.saved(early, folder / "one ahead")
        found["ahead saved"] = learner.taken(early, 2)
        found["lora"] = learner.taken(runs(lora=True), 2)
        found["lora ahead"] = learner.taken(runs(lora=True, max_staleness=1, steps=3), 3)
        found["disk evaluated"] = served.evaluated(runs(max_staleness=2, steps=4), 4)
        found["lora evaluated"] = served.evaluated(runs(lora=True, max_staleness=1, steps=3), 3)
    with served.served((), folder) as runs:
        found["by itself ahead"] = learner.taken(runs(max_staleness=1, steps=3), 3)
    return found


@pytest.fixture(scope="module")
def ranks(
    folder: Path, fakes: list[FakeVLLM], urls: list[str], dead: list[str], config: Path, one: Found, brief: list[Found]
) -> list[Found]:
    """All that two ranks found; the checkpoints of ``one`` are there before they start."""
    assert one
    mortal, again, base = ([fake.url] for fake in fakes[2:])
    found = checked(on_ranks(served.everything, folder, folder, urls, base, mortal, again, dead, str(config)))
    return [earlier | more for earlier, more in zip(brief, found, strict=True)]


def checked(found: list[Any]) -> list[Found]:
    for rank in found:
        assert isinstance(rank, dict), rank
    return found


def assert_same(got: Found, expected: Found, ignored: set[str] = OF_THE_CLOCK) -> None:
    assert len(got["rows"]) == len(expected["rows"])
    for row, right in zip(got["rows"], expected["rows"], strict=True):
        assert row.keys() - ignored == right.keys() - ignored
        for name in row.keys() - ignored - {"explained_variance"}:
            assert row[name] == pytest.approx(right[name], rel=TOLERANCE, abs=TOLERANCE), name
    assert distance(got["weights"], expected["weights"]) <= TOLERANCE


def distance(a: list[float], b: list[float]) -> float:
    """The largest difference."""
    return float((torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)).abs().max())


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_take_the_steps_of_one_process(brief: list[Found], brief_one: Found, mode: str) -> None:
    for rank in brief:
        found = rank[f"{mode} gloo"]
        assert_same(found, brief_one["gloo"])
        for step, row in enumerate(found["rows"], start=1):
            assert (row["policy_version"], row["servers"]) == (step, 2)
            assert row["probe_difference"] < 1e-5
            assert row["mismatch_max"] < 1e-6
    start = learner.weights(learner.language_model().double())
    assert distance(brief_one["gloo"]["weights"], start) > 1e-3, "it learned something"


@pytest.mark.parametrize("mode", MODES)
def test_sampling_ahead_gives_the_numbers_of_one_process(brief: list[Found], brief_one: Found, mode: str) -> None:
    for rank in brief:
        late_by(1, rank[f"{mode} ahead 1"], brief_one["ahead 1"])
    assert distance(brief_one["ahead 1"]["weights"], brief_one["gloo"]["weights"]) > 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["gloo", "ahead 1"])
def test_evaluations_by_servers_are_those_of_one_process_and_change_nothing(
    brief: list[Found], brief_one: Found, mode: str, way: str
) -> None:
    expected = brief_one[f"{way} evaluated"]
    seen = [evaluation["responses"] for evaluation in expected["evaluated"]]
    assert all(a != b for a, b in itertools.pairwise(seen)), "by another policy after each step"
    pushes = set() if way == "gloo" else {"policy_version"}
    for found in (expected, *(rank[f"{mode} {way} evaluated"] for rank in brief)):
        assert_same(found, brief_one[way], OF_THE_CLOCK | pushes)
        same_evaluations(found, expected)


def same_evaluations(found: Found, expected: Found) -> None:
    for got, right in zip(found["evaluated"], expected["evaluated"], strict=True):
        assert got.keys() == right.keys()
        assert min(right["kl"]) >= 0.0
        for name in got:
            exact = name in ("responses", "length", "ended") or right[name] is None
            assert got[name] == (right[name] if exact else pytest.approx(right[name], rel=TOLERANCE, abs=TOLERANCE))


def late_by(lag: int, found: Found, expected: Found) -> None:
    assert [row.get("staleness", 0) for row in found["rows"]] == [min(lag, step) for step in range(4)]
    assert max(row["mismatch_max"] for row in found["rows"]) < 1e-6, "log π_old is of the version that sampled"
    assert found["rows"][-1]["moved_since_sampling"] > 1e-5
    assert_same(found, expected)


def test_when_no_server_is_left_all_ranks_say_so(brief: list[Found]) -> None:
    for way in ("no server", "no server ahead"):
        assert brief[0][way].startswith("P3OError: rl.rollout.urls: no server is left after 0 s (http://127.0.0.1:")
        assert brief[1][way].startswith("P3OError: process 0: rl.rollout.urls: no server is left after 0 s (http")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_weights_by_files_make_the_same_steps(ranks: list[Found], one: Found, mode: str) -> None:
    for rank in ranks:
        assert_same(rank[f"{mode} disk"], one["gloo"])
        assert_same(rank[f"{mode} disk ahead"], one["ahead 1"])
    assert ranks[0][f"{mode} left behind"] == [], "files are removed at the end"


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_an_adapter_goes_alone_or_merged(ranks: list[Found], one: Found, mode: str) -> None:
    for rank in ranks:
        assert_same(rank[f"{mode} merged"], one["lora"])
        assert_same(rank[f"{mode} lora"], one["lora"], {"servers"} | OF_THE_CLOCK)
        assert_same(rank[f"{mode} lora ahead"], one["lora ahead"], {"servers"} | OF_THE_CLOCK)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_steps_ahead_there_are_two_versions_under_way(ranks: list[Found], one: Found, mode: str) -> None:
    for rank in ranks:
        late_by(2, rank[f"{mode} ahead 2"], one["ahead 2"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_evaluations_leave_no_version_without_its_files(ranks: list[Found], one: Found, mode: str) -> None:
    for rank in ranks:
        for way, undisturbed in (("disk", "ahead 2"), ("lora", "lora ahead")):
            found, expected = rank[f"{mode} {way} evaluated"], one[f"{way} evaluated"]
            assert_same(found, one[undisturbed], {"policy_version", "servers"} | OF_THE_CLOCK)
            same_evaluations(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_ratio_to_the_policy_of_the_step_needs_no_past(ranks: list[Found], one: Found, mode: str) -> None:
    for rank in ranks:
        assert_same(rank[f"{mode} arrival"], one["arrival"])


@pytest.mark.slow
def test_learners_that_sample_by_themselves_can_do_so_ahead(ranks: list[Found], one: Found) -> None:
    for rank in ranks:
        assert_same(rank["by themselves ahead"], one["by itself ahead"])
        assert rank["sharded by themselves ahead"].startswith(
            "P3OError: rl.training.max_staleness: with parallel.mode: fsdp the learner cannot sample while it trains"
        )


@pytest.mark.slow
def test_ranks_end_with_the_same_bytes(ranks: list[Found]) -> None:
    for name in ranks[0]:
        if not name.startswith(("no ", "command")) and not name.endswith("left behind"):
            assert ranks[0][name] == ranks[1][name], name


# Checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("way", ["", "ahead "])
def test_one_process_saves_and_two_go_on(ranks: list[Found], one: Found, way: str) -> None:
    for rank in ranks:
        for mode in MODES:
            assert_same(rank[f"{mode} {way}saved"], one[f"{way}saved"])
            assert_same(rank[f"{mode} {way}from one"], one[f"{way}saved"], OF_THE_CLOCK | OF_A_START)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["", " ahead"])
@pytest.mark.parametrize("mode", MODES)
def test_two_save_and_one_process_goes_on(
    ranks: list[Found], one: Found, folder: Path, urls: list[str], mode: str, way: str
) -> None:
    assert ranks
    with served.served(urls, folder) as runs:
        run = runs(max_staleness=1, steps=3) if way else runs()
        found = learner.gone_on(run, folder / f"{mode}{way}", 2 if way else 1)
    assert_same(found, one[f"{way} saved".strip()], OF_THE_CLOCK | OF_A_START)


# Servers and files


@pytest.mark.slow
@pytest.mark.parametrize(("way", "undisturbed"), [("killed", "gloo"), ("killed ahead", "ahead 1")])
def test_a_server_killed_in_the_middle_and_back_loses_nothing(
    ranks: list[Found], one: Found, way: str, undisturbed: str
) -> None:
    """It gets the version that the batch is of from the first process alone, while the others wait or train."""
    for rank in ranks:
        assert_same(rank[way], one[undisturbed], {"servers"} | OF_THE_CLOCK | OF_A_DEATH)
        assert sum(row.get("servers_rejoined", 0) for row in rank[way]["rows"]) == 1
        assert max(row["mismatch_max"] for row in rank[way]["rows"]) < 1e-6


@pytest.mark.slow
def test_a_failure_in_the_middle_of_the_gathering_leaves_nobody_waiting(ranks: list[Found]) -> None:
    assert ranks[0]["no room"] == "P3OError: no room is left"
    assert ranks[1]["no room"] == "P3OError: process 0: no room is left"
    for rank in ranks:
        assert rank["no adapter"].startswith("P3OError: rl.rollout.weights: lora sends only the adapter")


@pytest.mark.slow
def test_the_command_does_it_on_all_ranks(ranks: list[Found], folder: Path) -> None:
    assert [rank["command"][0] for rank in ranks] == [0, 0]
    assert "2 processes, sharded" in ranks[0]["command"][1]
    assert ranks[1]["command"][1] == "", "the first one talks to the user"
    rows = [row for row in read_jsonl(folder / "command/metrics.jsonl") if row["stage"] == "rl"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["policy_version"] for row in rows] == [2, 3, 3], "the first was evaluated"
    assert all(row["probe_difference"] < 1e-3 for row in rows if "probe_difference" in row)
    assert all(math.isfinite(row["mismatch_max"]) for row in rows)
    assert not (folder / "command/rollouts").exists()
    for rank, told in enumerate(found["command without"] for found in ranks):
        assert told[0] == 2
        *_, line = told[1].splitlines()
        assert line.startswith(f"error: {'process 0: ' if rank else ''}rl.rollout.urls: no server is left after 0 s")


@pytest.mark.slow
def test_waiting_for_servers_is_no_collective(tmp_path: Path) -> None:
    """Fifteen seconds for a collective, twenty for a batch."""
    fake = server()
    fake.before = lambda body: None if "prompt_logprobs" in body else time.sleep(20)
    try:
        found = on_ranks(served.waits, tmp_path, tmp_path, [fake.url], minutes=0.25)
        for rank in found:
            assert isinstance(rank, dict), rank
            assert all(row["rollout_seconds"] > 0 for rows in rank.values() for row in rows["rows"])
        assert found[0] == found[1]
    finally:
        fake.end()
