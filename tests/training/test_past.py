"""The policy's past: its weights in modules that two threads can use at once."""

import torch
from torch import nn

from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.training.past import past_of


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_sampling_and_passes_have_modules_of_their_own_with_the_same_weights() -> None:
    policy = build_model(build_tokenizer(), seed=0).eval()
    past = past_of(policy, for_passes=True)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    before = weights(policy)
    past.remember()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    with past.present() as passes:
        assert torch.equal(weights(past.source), before)
        assert torch.equal(weights(passes), before)
        modules = [set(map(id, model.modules())) for model in (policy, past.source, passes)]
        assert not modules[0] & modules[1]
        assert not modules[0] & modules[2]
        assert not modules[1] & modules[2]
        memory = [{parameter.data_ptr() for parameter in model.parameters()} for model in (past.source, passes)]
    assert memory[0] == memory[1], "no second copy of the weights"
