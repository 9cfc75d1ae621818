"""What processes tell each other arrives as it was."""

import pytest
import torch

from p3o.distributed.messages import as_tensor, pack, unpack


def test_a_tree_arrives_as_it_was() -> None:
    tree = {
        "text": "naïve ☃",
        "numbers": [1, 2.5, float("inf"), None, True],
        "tensors": [torch.tensor([[1.5, -0.0]], dtype=torch.float64), torch.tensor([True, False]), torch.empty(0, 3)],
        "\0tensor": {"\0": 1, "\0\0tensor": "/a"},
        "view": torch.arange(12).view(3, 4)[:, 1],
    }
    message = pack(tree)
    got = unpack(as_tensor(message).numpy().tobytes())
    assert got["text"] == tree["text"]
    assert got["numbers"] == tree["numbers"]
    assert got["\0tensor"] == tree["\0tensor"]
    for found, sent in zip([*got["tensors"], got["view"]], [*tree["tensors"], tree["view"]], strict=True):
        assert found.dtype == sent.dtype
        assert torch.equal(found, sent)
        assert found.shape == sent.shape


def test_nan_arrives() -> None:
    assert unpack(pack([float("nan")]))[0] != unpack(pack([float("nan")]))[0]
    assert unpack(pack(torch.tensor([float("nan")]))).isnan().all()


def test_what_is_no_tree_is_refused() -> None:
    with pytest.raises(TypeError, match=r"cannot hold a set \(at /a\)"):
        pack({"a": {1}})
