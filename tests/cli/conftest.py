"""The report's synthetic run, for commands that need a whole run folder."""

from tests.report.conftest import finished_run

__all__ = ["finished_run"]
