"""What the tests of Ray share: a prepared run, and processes that are searched for afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scale.clusters import assert_none, new_mark, processes
from tests.scale.runs import prepare


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what RL begins from."""
    return prepare(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def mark() -> Iterator[str]:
    """For the environment of what a test starts; none of it is left when the test is over."""
    mark = new_mark()
    yield mark
    assert_none(processes, mark)
