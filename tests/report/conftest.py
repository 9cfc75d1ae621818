"""One synthetic run folder for the tests that only read it."""

from pathlib import Path

import pytest
from tests.report.synthetic_run import write_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "finished", shift=True)
