"""Every layout against every response alone: log-probs and gradients, families, numbers of responses, lengths."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from tests.models.conftest import FAMILIES, OTHERS, PAD, SCALED, VOCABULARY, build, exact
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, PreTrainedModel

from p3o.errors import P3OError
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.language import response_logprobs
from p3o.models.layouts import LAYOUTS, Layout
from p3o.models.precision import compute_in
from p3o.models.probe import choose_layout
from p3o.models.recomputation import enable_gradient_checkpointing
from p3o.models.tokens import GroupTokens, collate_groups

TEMPERATURE, TIME = 0.7, 9
LAYOUT_NAMES = list(LAYOUTS)


def some_groups(responses: int, seed: int = 0) -> list[GroupTokens]:
    """Four groups of unequal prompts; responses of 1 to 9 tokens, of one token only in the last group."""
    generator = torch.Generator().manual_seed(seed)

    def some(count: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (count,), generator=generator).tolist()

    lengths = [[1 + (3 * g + 5 * k) % TIME for k in range(responses)] for g in range(3)] + [[1] * responses]
    return [
        GroupTokens(some(size), [some(length) for length in row], [True] * responses)
        for size, row in zip((5, 1, 12, 7), lengths, strict=True)
    ]


def alone(model: PreTrainedModel, groups: Sequence[GroupTokens]) -> Tensor:
    """The reference: no padding, no neighbours, the whole logits, log-softmax written out."""
    result = torch.zeros(len(groups), len(groups[0].responses), TIME, dtype=next(model.parameters()).dtype)
    for g, group in enumerate(groups):
        for k, response in enumerate(group.responses):
            logits = model(input_ids=torch.tensor([group.prompt + response])).logits[0, len(group.prompt) - 1 : -1]
            logprobs = torch.log_softmax(logits / TEMPERATURE, -1)
            result[g, k, : len(response)] = logprobs[torch.arange(len(response)), response]
    return result


def laid_out(model: PreTrainedModel, layout: Layout, groups: Sequence[GroupTokens]) -> Tensor:
    return layout.logprobs(model, groups, temperature=TEMPERATURE, time=TIME, fill=PAD)


def gradient(model: PreTrainedModel, logprobs: Tensor) -> Tensor:
    """Of a sum in which every token has a weight of its own, for all parameters."""
    weights = torch.rand(logprobs.shape, generator=torch.Generator().manual_seed(2)).to(logprobs)
    model.zero_grad()
    (logprobs * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("responses", [2, 3, 4])
@pytest.mark.parametrize("name", LAYOUT_NAMES)
@pytest.mark.parametrize("family", [*FAMILIES, "granite"])
def test_equal_in_float64(family: str, name: str, responses: int) -> None:
    model = exact(build((FAMILIES | SCALED)[family](), torch.float64))
    # GPT-J attends in float32 whatever its dtype.
    atol, relative = (1e-5, 1e-5) if family == "gptj" else (1e-12, 1e-8)
    groups = some_groups(responses)
    expected = alone(model, groups)
    expected_gradient = gradient(model, expected)
    for budget in (None, 5 * VOCABULARY * 8) if responses == 3 else (None,):
        got = laid_out(model, LAYOUTS[name](budget=budget), groups)
        torch.testing.assert_close(got, expected, atol=atol, rtol=0)
        error = gradient(model, got) - expected_gradient
        assert error.norm() <= relative * expected_gradient.norm()


@pytest.mark.parametrize("name", LAYOUT_NAMES)
@pytest.mark.parametrize("family", FAMILIES | SCALED)
def test_equal_in_float32(family: str, name: str) -> None:
    model = build((FAMILIES | SCALED)[family](), torch.float32)
    groups = some_groups(3)
    for budget in (None, 1):
        got = laid_out(model, LAYOUTS[name](budget=budget), groups)
        torch.testing.assert_close(got, alone(model, groups), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["split", "padded"])
@pytest.mark.parametrize("family", OTHERS)
def test_windows_and_biases_are_right_in_split_and_padded_rows(family: str, name: str) -> None:
    model = build(OTHERS[family](), torch.float32)
    groups = some_groups(3)
    for budget in (None, 1):
        got = laid_out(model, LAYOUTS[name](budget=budget), groups)
        torch.testing.assert_close(got, alone(model, groups), atol=1e-4, rtol=0)


def test_the_padded_layout_is_the_plain_path(model: PreTrainedModel) -> None:
    groups = some_groups(2)
    prompts, responses = collate_groups(groups, PAD, time=TIME)
    plain = response_logprobs(model, prompts, responses, temperature=TEMPERATURE)
    torch.testing.assert_close(laid_out(model, LAYOUTS["padded"](), groups), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_no_response_sees_another(model: PreTrainedModel, name: str) -> None:
    """Other tokens in y1, in another group, in the padding: y2's log-probs keep every bit."""
    layout = LAYOUTS[name]()
    groups = some_groups(3)
    before = laid_out(model, layout, groups)

    def changed(row: list[int]) -> list[int]:
        return [(token + 1) % VOCABULARY for token in row]

    first = groups[0]
    other = [
        GroupTokens(first.prompt, [changed(first.responses[0]), *first.responses[1:]], first.ended),
        GroupTokens(changed(groups[1].prompt), [changed(row) for row in groups[1].responses], groups[1].ended),
        *groups[2:],
    ]
    after = laid_out(model, layout, other)
    assert torch.equal(after[0, 1:], before[0, 1:])
    assert torch.equal(after[2:], before[2:])
    assert not torch.equal(after[0, 0], before[0, 0]), "the negative control: y1 itself has changed"
    filled = layout.logprobs(model, groups, temperature=TEMPERATURE, time=TIME, fill=7)
    assert torch.equal(filled, before)


@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_first_tokens_are_predicted_from_the_end_of_the_prompt(model: PreTrainedModel, name: str) -> None:
    groups = some_groups(3)
    got = laid_out(model, LAYOUTS[name](), groups)
    for g, group in enumerate(groups):
        logits = model(input_ids=torch.tensor([group.prompt])).logits[0, -1]
        firsts = [response[0] for response in group.responses]
        expected = torch.log_softmax(logits / TEMPERATURE, -1)[firsts]
        torch.testing.assert_close(got[g, :, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LAYOUT_NAMES)
@pytest.mark.parametrize("budget", [None, 1])
def test_without_a_graph_every_bit_is_the_same(name: str, budget: int | None) -> None:
    """So the training pass, detached, may stand for the behaviour pass: the first ratio is exactly 1."""
    for dtype in (torch.float32, torch.float64):
        model = build(LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48), dtype)
        groups, layout = some_groups(2), LAYOUTS[name](budget=budget)
        with torch.no_grad():
            quiet = laid_out(model, layout, groups)
        trained = laid_out(model, layout, groups)
        assert trained.requires_grad
        assert torch.equal(trained, quiet)


@pytest.mark.parametrize("name", LAYOUT_NAMES)
@pytest.mark.parametrize("responses", [2, 4])
def test_the_model_sees_as_many_tokens_as_the_layout_says(name: str, responses: int) -> None:
    """The prompt once and not K times; the head only where a response token is predicted."""
    model = build(FAMILIES["llama"](), torch.float32)
    prompt, length = 20, 6
    groups = [GroupTokens([5] * prompt, [[6] * length] * responses, [True] * responses)] * 3
    seen, scored = [], []
    model.get_input_embeddings().register_forward_hook(lambda _m, arguments, _o: seen.append(arguments[0].numel()))
    model.get_output_embeddings().register_forward_hook(lambda _m, _a, output: scored.append(output.shape[:-1].numel()))
    layout = LAYOUTS[name]()
    laid_out(model, layout, groups)
    once, repeated = prompt + responses * (length - 1), responses * (prompt + length - 1)
    assert sum(seen) == 3 * (repeated if name == "padded" else once) == sum(map(layout.length, groups))
    assert sum(scored) == 3 * (responses * length if name == "padded" else 1 + responses * (length - 1))


def test_the_probe_takes_shared_rows_where_they_are_right(model: PreTrainedModel) -> None:
    verdict = choose_layout(model, responses=3)
    assert (verdict.layout.name, verdict.rejected, verdict.chunked) == ("shared", {}, True)
    assert str(verdict) == "layout shared (a prompt and all its responses in one row)"


@pytest.mark.parametrize("family", OTHERS)
def test_the_probe_rejects_shared_rows_where_they_are_wrong(family: str) -> None:
    model = build(OTHERS[family](), torch.float32)
    verdict = choose_layout(model, responses=2)
    assert verdict.layout.name == "split"
    assert list(verdict.rejected) == ["shared"]
    assert verdict.chunked
    with pytest.raises(P3OError, match=r"layout shared: wrong for this model .*; use layout auto"):
        choose_layout(model, choice="shared")


def wrong_by_measurement(model: PreTrainedModel) -> str:
    """What the probe finds wrong with shared rows when it is told that windows do not matter."""
    return choose_layout(model, responses=2, context=1).rejected["shared"]


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "mpt"])
def test_the_probe_measures_and_does_not_look_up(family: str) -> None:
    assert "nats off" in wrong_by_measurement(build(OTHERS[family](), torch.float32))


class Unplaced(GPT2LMHeadModel):
    """Learned positions, counted from the left edge whatever is padding: it takes no position ids."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> Any:
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )


def test_a_model_that_misreads_padding_on_the_left_is_no_licence_to_misread_shared_rows() -> None:
    """What padding does to it is no rounding, and must not widen the tolerance."""
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": VOCABULARY, "n_positions": 64}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    model = Unplaced(GPT2Config(**sizes, **ids, initializer_range=0.2)).eval()
    verdict = choose_layout(model)
    assert verdict.layout.name == "padded"
    assert verdict.misreads > 0.1
    assert "beware: padding, as there is in sampling, changes what it reads" in str(verdict)
    groups = some_groups(2)
    found = verdict.layout.logprobs(model, groups, temperature=TEMPERATURE, time=TIME, fill=PAD)
    mask = collate_groups(groups, PAD, time=TIME)[1].mask
    torch.testing.assert_close(found[mask], alone(model, groups)[mask], rtol=0, atol=1e-4)


def test_a_window_longer_than_everything_does_not_matter() -> None:
    config = OTHERS["mistral"]()
    config.sliding_window = 4096
    model = build(config, torch.float32)
    assert choose_layout(model).layout.name == "split"
    assert choose_layout(model, context=4096).layout.name == "shared"
    assert choose_layout(model, context=4097).layout.name == "split"


def test_eager_attention_reads_additive_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It adds a boolean one to its scores, and nothing is masked: that is caught, too."""
    model = build(FAMILIES["llama"](), torch.float32)
    model.set_attn_implementation("eager")
    assert choose_layout(model).layout.name == "shared"
    boolean: Callable[[object, Tensor], Tensor] = lambda _model, visible: visible  # noqa: E731
    monkeypatch.setattr("p3o.models.layouts.attention_mask", boolean)
    assert choose_layout(model).layout.name == "split"


def test_split_refuses_gradient_checkpointing_in_training_mode() -> None:
    model = build(FAMILIES["llama"](), torch.float32)
    model.activation_checkpointing_enable()
    groups = some_groups(2)
    laid_out(model, LAYOUTS["split"](), groups)
    model.train()
    with pytest.raises(P3OError, match="gradient checkpointing"):
        laid_out(model, LAYOUTS["split"](), groups)
    with pytest.raises(P3OError, match="layout split: wrong for this model"):
        choose_layout(model, choice="split")
    shared = laid_out(model, LAYOUTS["shared"](), groups)
    torch.testing.assert_close(shared, alone(model.eval(), groups), atol=1e-4, rtol=0)


def test_layers_that_are_recomputed_change_nothing() -> None:
    model = exact(build(FAMILIES["llama"](), torch.float64))
    groups = some_groups(3)
    expected = gradient(model, alone(model, groups))
    enable_gradient_checkpointing(model)
    for name in LAYOUT_NAMES:
        error = gradient(model, laid_out(model, LAYOUTS[name](), groups)) - expected
        assert error.norm() <= 1e-8 * expected.norm()


@pytest.mark.parametrize("targets", [("q_proj", "down_proj"), ("v_proj", "lm_head")])
def test_adapters_are_seen_by_every_layout(targets: tuple[str, ...]) -> None:
    """On the layers and on the head itself; and the gradient reaches them."""
    model: Any = exact(build(FAMILIES["llama"](), torch.float64))
    adapted: Any = add_adapter(model, LoraSettings(rank=2, target_modules=targets), task="CAUSAL_LM", seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    assert str(choose_layout(adapted)) == "layout shared (a prompt and all its responses in one row)"
    groups = some_groups(2)
    expected = alone(adapted, groups)
    expected_gradient = gradient(adapted, expected)
    for name, budget in product(LAYOUT_NAMES, (None, 1)):
        got = laid_out(adapted, LAYOUTS[name](budget=budget), groups)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
        assert (gradient(adapted, got) - expected_gradient).norm() <= 1e-6 * expected_gradient.norm()


def test_chunks_compute_in_the_dtype_of_the_model() -> None:
    model = compute_in(build(FAMILIES["llama"](), torch.float32), torch.bfloat16)
    groups = some_groups(2)
    whole = laid_out(model, LAYOUTS["shared"](budget=None), groups)
    chunked = laid_out(model, LAYOUTS["shared"](budget=VOCABULARY * 4 * 4), groups)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)
    assert (whole - alone(model, groups)).abs().max() > 1e-4, "the test needs rounding to bfloat16"


def test_a_model_that_cuts_the_graph_of_its_cache_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-probs would be right and the gradients wrong."""
    from transformers.cache_utils import DynamicLayer

    update = DynamicLayer.update

    def detached(
        self: DynamicLayer, keys: Tensor, values: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, ...]:
        return update(self, keys.detach(), values.detach(), *args, **kwargs)

    monkeypatch.setattr(DynamicLayer, "update", detached)
    with pytest.raises(P3OError, match="gradients are off"):
        choose_layout(build(FAMILIES["llama"](), torch.float32), choice="split")
