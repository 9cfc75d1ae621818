"""The critic on the rows of a layout: values and gradients of the body on each response alone."""

from collections.abc import Sequence

import pytest
import torch
from tests.models.conftest import EOS, FAMILIES, OTHERS, PAD, exact
from tests.models.test_layouts import some_groups
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig

from p3o.errors import P3OError
from p3o.models.heads import Critic
from p3o.models.layouts import LAYOUTS
from p3o.models.tokens import GroupTokens, collate_groups
from p3o.training.passes import Passes

TIME = 9


def critic(config: PreTrainedConfig, dtype: torch.dtype) -> Critic:
    """A random body with a random head."""
    torch.manual_seed(0)
    config.initializer_range = 0.3
    config.eos_token_id, config.pad_token_id, config.bos_token_id = EOS, PAD, None
    made = Critic(exact(AutoModel.from_config(config).to(dtype))).eval()
    with torch.no_grad():
        made.head.weight.normal_(std=0.3)
        made.head.bias.fill_(0.7)
    return made


def alone(critic: Critic, groups: Sequence[GroupTokens]) -> Tensor:
    """The reference: no padding, no neighbours, the head written out."""
    result = torch.zeros(len(groups), len(groups[0].responses), TIME, dtype=critic.head.weight.dtype)
    for g, group in enumerate(groups):
        for k, response in enumerate(group.responses):
            hidden = critic.body(input_ids=torch.tensor([group.prompt + response])).last_hidden_state[0]
            states = hidden[len(group.prompt) - 1 : -1].to(critic.head.weight.dtype)
            result[g, k, : len(response)] = states @ critic.head.weight[0] + critic.head.bias
    return result


def gradient(critic: Critic, values: Tensor) -> Tensor:
    """Of a sum in which every value has a weight of its own, for all parameters."""
    weights = torch.rand(values.shape, generator=torch.Generator().manual_seed(2))
    critic.zero_grad()
    (values * weights).sum().backward()
    return torch.cat([p.grad.flatten().double() for p in critic.parameters() if p.grad is not None])


@pytest.mark.parametrize("responses", [2, 3, 4])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gptj"])
def test_values_on_every_layout(family: str, name: str, responses: int) -> None:
    """Body, head and values in float64."""
    made, groups = critic(FAMILIES[family](), torch.float64), some_groups(responses)
    got, expected = made.values(LAYOUTS[name](), groups, time=TIME, fill=PAD), alone(made, groups)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    wanted = gradient(made, expected)
    assert (gradient(made, got) - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_path_agrees(family: str) -> None:
    made, groups = critic(FAMILIES[family](), torch.float32), some_groups(2)
    prompts, responses = collate_groups(groups, PAD, time=TIME)
    plain = made(prompts, responses).masked_fill(~responses.mask, 0.0)
    torch.testing.assert_close(plain, alone(made, groups), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_rows_are_chosen_where_they_are_right(family: str) -> None:
    assert (
        str(critic(FAMILIES[family](), torch.float32).choose_layout(responses=3))
        == "layout shared (a prompt and all its responses in one row)"
    )


@pytest.mark.parametrize("family", OTHERS)
def test_and_split_rows_where_they_are_not_although_the_head_is_still_zero(family: str) -> None:
    fresh = Critic(critic(OTHERS[family](), torch.float32).body)
    assert not fresh.head.weight.any()
    verdict = fresh.choose_layout()
    assert (verdict.layout.name, list(verdict.rejected)) == ("split", ["shared"])
    with pytest.raises(P3OError, match=r"layout shared: wrong for this critic .*; use layout auto"):
        fresh.choose_layout(choice="shared")


def test_a_wrong_mask_is_measured() -> None:
    """Mistral, told that its window does not matter."""
    verdict = critic(OTHERS["mistral"](), torch.float32).choose_layout(context=1)
    assert verdict.rejected["shared"].startswith("values are ")


def test_passes_give_values_in_the_order_of_the_groups() -> None:
    made, groups = critic(FAMILIES["llama"](), torch.float64), some_groups(3)
    for name in LAYOUTS:
        layout = LAYOUTS[name]()
        passes = Passes(layout, 1.0, PAD, tokens=30, critic_layout=layout)
        assert len(passes.micro_batches(groups)) > 1
        values = passes.values(made, groups, TIME)
        assert not values.requires_grad
        torch.testing.assert_close(values, alone(made, groups), atol=1e-5, rtol=0)


def test_a_prompt_is_read_once() -> None:
    made, prompt, length, responses = critic(FAMILIES["llama"](), torch.float32), 20, 6, 3
    groups = [GroupTokens([5] * prompt, [[6] * length] * responses, [True] * responses)] * 2
    seen: list[int] = []
    made.body.get_input_embeddings().register_forward_hook(lambda _m, arguments, _o: seen.append(arguments[0].numel()))
    for name in LAYOUTS:
        seen.clear()
        made.values(LAYOUTS[name](), groups, time=length, fill=PAD)
        assert sum(seen) == sum(map(LAYOUTS[name]().length, groups))
