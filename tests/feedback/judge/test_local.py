"""The local judge against the model's own log-probs; the judges that are functions; what a configuration needs."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from p3o.errors import P3OError
from p3o.feedback.judge import JudgeConfig, open_judge, verdict_rates
from p3o.feedback.judge.prompts import Question
from p3o.feedback.judge.scores import FunctionJudge, ScoreJudge

PROMPTS = ["How?", "Why is that so, and what could be done about it?", "When?"]
A, B = ["So.", "Because of this and that.", "Now"], ["Thus it is.", "No.", "Now"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random model with a tokenizer of bytes that has tokens for " A" and " B"."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "ĠA", "ĠB", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "A"), ("Ġ", "B")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", model_max_length=1200)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1200,
        initializer_range=1.0,
    )
    path = str(tmp_path_factory.mktemp("models") / "tiny")
    LlamaForCausalLM(config).save_pretrained(path)
    fast.save_pretrained(path)
    return path


def test_the_local_judge_takes_the_likelier_letter_whatever_shares_its_batch(folder: str, tmp_path: Path) -> None:
    config = JudgeConfig(kind="transformers", model=folder, batch_size=3)
    verdicts = open_judge(config, cache=tmp_path / "c.sqlite").compare(PROMPTS, A, B)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for verdict, prompt, a, b in zip(verdicts[:2], PROMPTS, A, B, strict=False):
        for answer, first, second in ((verdict.forward, a, b), (verdict.backward, b, a)):
            ids = tokenizer(Question("helpfulness").fill(prompt, first, second).rstrip() + "\n\nPreferred:")[
                "input_ids"
            ]
            with torch.no_grad():
                logprobs = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            pair = [float(logprobs[tokenizer.convert_tokens_to_ids(letter)]) for letter in ("ĠA", "ĠB")]
            assert answer is not None
            assert answer.choice == ("first" if pair[0] > pair[1] else "second")
            assert [float(part.split()[-1]) for part in answer.text.split(",")] == pytest.approx(pair, abs=2e-3)
    assert verdicts[2].preference == 0.0
    assert open_judge(config, cache=tmp_path / "c.sqlite").estimate(PROMPTS, A, B).questions == 0


def test_a_question_that_does_not_fit_is_a_failure_and_not_cut(folder: str) -> None:
    verdicts = open_judge(JudgeConfig(kind="transformers", model=folder)).compare(
        ["x" * 900, "y"], ["a", "b"], ["c", "d"]
    )
    assert verdicts[0].outcome == "failed"
    assert verdicts[0].forward is not None
    assert "more than the model's 1200" in verdicts[0].forward.error
    assert verdicts[1].outcome != "failed"


def length(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in responses]


def test_a_reward_prefers_the_higher_score() -> None:
    signs = ScoreJudge(length, name="length", log_odds=False).compare(PROMPTS, A, B)
    graded = ScoreJudge(length, name="length", log_odds=True).compare(PROMPTS, A, B)
    assert [v.preference for v in signs] == [-1.0, 1.0, 0.0]
    # 2σ(3 − 11) − 1
    assert graded[0].preference == pytest.approx(2 / (1 + 2.718281828459045**8) - 1)
    assert verdict_rates(signs).first_position_rate is None


def test_a_score_that_is_not_finite_is_a_failure() -> None:
    judge = ScoreJudge(lambda p, r: [float("nan") if text == "So." else 0.0 for text in r], name="x", log_odds=True)
    assert [v.outcome for v in judge.compare(PROMPTS, A, B)] == ["failed", "tie", "tie"]


def test_a_function_is_asked_in_both_orders() -> None:
    longer = FunctionJudge(
        lambda p, a, b: [(len(x) > len(y)) - (len(x) < len(y)) for x, y in zip(a, b, strict=True)], name="f"
    )
    assert [v.preference for v in longer.compare(PROMPTS, A, B)] == [-1.0, 1.0, 0.0]
    first = FunctionJudge(lambda p, a, b: [1.0] * len(p), name="f").compare(PROMPTS, A, B)
    assert verdict_rates(first).flips == 3
    assert verdict_rates(first).first_position_rate == 1.0
    mild = FunctionJudge(lambda p, a, b: [0.5 if x == A[0] else -0.25 for x in a], name="f").compare(
        PROMPTS[:1], A[:1], B[:1]
    )
    assert mild[0].preference == 0.375
    biased = lambda p, a, b: [0.75 if x == A[0] else 0.25 for x in a]  # noqa: E731
    for contradictions, preference in (("tie", 0.0), ("average", 0.25)):
        judge = FunctionJudge(biased, name="f", contradictions=contradictions)
        (verdict,) = judge.compare(PROMPTS[:1], A[:1], B[:1])
        assert (verdict.preference, verdict.flipped) == (preference, True)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"judge 'f' returned None \(is a return statement missing\?\); return a list of numbers"),
        ([1.0], "judge 'f' returned 1 preferences for 6 comparisons; return one for each"),
        ([1.0, 2.0, 0.0, 0.0, 0.0, 0.0], r"judge 'f' returned 2\.0 \(prompt 'Why"),
        (["1"] * 6, "judge 'f' returned '1' for comparison 0"),
        ([0.0, float("nan"), 0.0, 0.0, 0.0, 0.0], "judge 'f' returned nan for comparison 1"),
    ],
)
def test_a_function_that_returns_nonsense_is_told(returned: object, message: str) -> None:
    with pytest.raises(P3OError, match=message):
        FunctionJudge(lambda p, a, b: returned, name="f").compare(PROMPTS, A, B)


def test_functions_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_judges.py").write_text(
        "def second(prompts, a, b):\n    return [-1.0] * len(a)\n\ndef score(prompts, responses):\n"
        "    return [len(r) for r in responses]\n\ndef two(prompts, a):\n    return []\n"
    )
    compare = lambda kind, name: open_judge(JudgeConfig(kind=kind, function=f"my_judges:{name}")).compare(PROMPTS, A, B)  # noqa: E731
    assert verdict_rates(compare("function", "second")).first_position_rate == 0.0
    assert [v.preference for v in compare("reward_function", "score")] == [-1.0, 1.0, 0.0]
    with pytest.raises(P3OError, match=r"judge 'my_judges:two': cannot be called as two\(prompts, responses_a"):
        compare("function", "two")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "openai"}, "needs model"),
        ({"kind": "function", "model": "m"}, "needs function"),
        ({"kind": "openai", "model": "m", "max_cost": 1.0}, "needs price_input"),
        ({"kind": "openai", "model": "m", "api_key": "x"}, "Extra inputs"),
    ],
)
def test_an_incomplete_configuration_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JudgeConfig(**settings)


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="3 prompts for 2"):
        ScoreJudge(length, name="x", log_odds=True).compare(PROMPTS, A[:2], B)
