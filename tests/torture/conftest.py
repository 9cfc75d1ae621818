"""Two sizes: a short one in `make test`, and `--hypothesis-profile=torture` (`make torture`)."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("torture", max_examples=int(os.environ.get("P3O_TORTURE_EXAMPLES", "1000")), print_blob=True)
RECORD = "--torture-json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(RECORD, metavar="FILE", help="write how many malformed cases were tried")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from tests.torture.cases import REFUSED, TRIED  # not before the profile is chosen: it is read there

    if TRIED:
        terminalreporter.section("malformed cases")
        for what, count in sorted(TRIED.items()):
            terminalreporter.line(f"{what}: {count} tried, {REFUSED[what]} refused with a reason")
        terminalreporter.line(f"in all: {TRIED.total()}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    from tests.torture.cases import REFUSED, TRIED

    target = session.config.getoption(RECORD, None)
    if target:
        counts = {what: {"tried": count, "refused": REFUSED[what]} for what, count in sorted(TRIED.items())}
        Path(target).write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
