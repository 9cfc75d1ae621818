"""How often sampling makes the processor wait for the device: reading a number or the size of a selection does."""

from typing import Any

import pytest
import torch
from tests.models.conftest import EOS, FAMILIES, PAD, build
from torch.utils._python_dispatch import TorchDispatchMode

from p3o.models.sampling import sample_responses
from p3o.models.tokens import pad_left

WAITS = {"aten::_local_scalar_dense", "aten::nonzero"}


class Waits(TorchDispatchMode):
    """Counts the operations that a GPU could not run ahead of."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.name().split(".")[0] in WAITS
        return function(*args, **(kwargs or {}))


def waits(family: str, tokens: int, *ends: int) -> int:
    model = build(FAMILIES[family](), torch.float32)
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _arguments, logits: logits.index_fill_(-1, torch.tensor([EOS, *ends]), -torch.inf)
    )
    with Waits() as counted:
        responses = sample_responses(
            model,
            pad_left([[5, 6, 7], [8]], PAD),
            responses_per_prompt=2,
            max_new_tokens=tokens,
            eos_id=[EOS, *ends],
            pad_id=PAD,
        )
    assert not responses.ended.any()
    return counted.count


@pytest.mark.parametrize(
    ("family", "ends"), [("llama", (2, 3)), ("llama", ()), ("qwen2", ()), ("gpt2", ()), ("gpt_neox", ())]
)
def test_waits_for_each_token(family: str, ends: tuple[int, ...]) -> None:
    """Two: ours asks whether a row has ended, transformers' own whether the mask hides anything. The prefill reads once."""
    per_token = (waits(family, 20, *ends) - waits(family, 10, *ends)) / 10
    assert per_token == 2
