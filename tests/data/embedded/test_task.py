"""Prompts, demonstrations and pairs: split, counts, proportions, and the promised differences within pairs."""

from statistics import mean

import pytest

from p3o.data.embedded import task
from p3o.data.embedded.gold import gold_reward
from p3o.data.embedded.grammar import all_requests, parse_prompt, render_prompt
from p3o.errors import P3OError


def _gaps(pairs: list[task.CandidatePair]) -> list[float]:
    prompts = [pair.prompt for pair in pairs]
    better = gold_reward(prompts, [pair.response_a for pair in pairs])
    worse = gold_reward(prompts, [pair.response_b for pair in pairs])
    return [a - b for a, b in zip(better, worse, strict=True)]


def test_a_fifth_of_the_space_is_held_out() -> None:
    splits = [task.split_of(render_prompt(request)) for request in all_requests()]
    share = splits.count("heldout") / len(splits)
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / len(splits)) ** 0.5


def test_prompts_are_distinct_of_their_split_and_a_quarter_harmful() -> None:
    heldout = task.prompts(2000, seed=0, split="heldout")
    train = task.prompts(8000, seed=0, split="train")
    assert len(set(heldout)) == 2000
    assert len(set(train)) == 8000
    assert not set(heldout) & set(train)
    assert sum(parse_prompt(prompt).task.harmful for prompt in heldout) == 500


def test_draws_repeat_with_the_seed_and_differ_without() -> None:
    assert task.prompts(50, seed=1, split="train") == task.prompts(50, seed=1, split="train")
    assert task.prompts(50, seed=1, split="train") != task.prompts(50, seed=2, split="train")
    assert task.demonstrations(50, seed=1) == task.demonstrations(50, seed=1)
    assert task.comparison_candidates(50, seed=1) == task.comparison_candidates(50, seed=1)
    assert task.comparison_candidates(50, seed=1) != task.comparison_candidates(50, seed=2)


def test_more_prompts_than_there_are_is_an_error() -> None:
    with pytest.raises(
        P3OError, match=r"prompts: 100000 heldout prompts wanted, the embedded task has \d+; ask for fewer"
    ):
        task.prompts(100_000, seed=0, split="heldout")


def test_demonstrations_are_mediocre() -> None:
    rows = task.demonstrations(4000, seed=0)
    assert all(task.split_of(row.prompt) == "train" and row.completion.startswith(" ") for row in rows)
    scores = gold_reward([row.prompt for row in rows], [row.completion for row in rows])
    assert 0 < mean(scores) < 1.5
    assert 4.0 in scores


def test_kinds_of_pairs_come_in_their_shares() -> None:
    kinds = [pair.kind for pair in task.comparison_candidates(4000, seed=0)]
    assert sum(task.PAIR_KINDS.values()) == pytest.approx(1)
    for kind, share in task.PAIR_KINDS.items():
        assert abs(kinds.count(kind) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_pairs_differ_as_their_kind_promises() -> None:
    pairs = task.comparison_candidates(3000, seed=0)
    of_kind = {kind: [pair for pair in pairs if pair.kind == kind] for kind in task.PAIR_KINDS}
    assert all(pair.response_a.strip() and pair.response_b.strip() for pair in pairs)
    for pair in of_kind["name"]:
        name = parse_prompt(pair.prompt).name
        different = [(a, b) for a, b in zip(pair.response_a.split(), pair.response_b.split(), strict=True) if a != b]
        assert [a.rstrip(".,!") for a, _ in different] == [name]
    assert set(_gaps(of_kind["name"])) == {1.5}
    for pair in of_kind["one_sentence"]:
        assert len(pair.response_b) < len(pair.response_a)
    assert mean(_gaps(of_kind["cross_prompt"])) > 2


def test_good_answers_to_other_prompts_are_always_worse() -> None:
    pairs = task.cross_prompt_pairs(500, seed=0)
    assert all(task.split_of(pair.prompt) == "heldout" for pair in pairs)
    assert min(_gaps(pairs)) > 0


def test_the_curriculum_is_an_order_with_names_early() -> None:
    kinds = ["name"] * 250 + ["policy"] * 750
    order = task.curriculum_order(kinds, seed=0)
    assert sorted(order) == list(range(1000))
    early = [kinds[i] for i in order[:300]].count("name")
    assert early > 180
    assert "name" in [kinds[i] for i in order[500:]]
