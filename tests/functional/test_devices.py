"""Numbers read at once are those read one by one."""

import torch
from tests.pretended_device import DEVICE, pretended_device

from p3o.functional.devices import numbers, onto


def test_numbers_are_read_exactly_and_at_once_from_each_kind() -> None:
    scalars = [
        torch.tensor(0.1),
        torch.tensor([2.0 / 3.0], requires_grad=True),
        torch.tensor(7),
        torch.tensor(1e-300).double(),
    ]
    expected = [scalar.item() for scalar in scalars]
    assert numbers(scalars) == expected
    assert numbers([]) == []
    with pretended_device() as waits:
        there = [onto(scalar, DEVICE) for scalar in scalars]
        assert waits.total == 0, "the processor goes on while they are copied"
        assert numbers(there) == expected
        assert waits.take().total() == 1
        assert numbers([there[0], scalars[1]]) == expected[:2], "from two places, one by one"
