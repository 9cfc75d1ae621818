"""Every shape and dtype in the signatures of p3o is checked while the tests run; one thread, so that numbers repeat; no hub."""

import os
import signal
from collections.abc import Iterator

from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"

# Before anything imports the package: only modules imported after this line are checked.
install_import_hook("p3o", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a terminal, here and in what a test starts; a job in a shell's background is born with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
