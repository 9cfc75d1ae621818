"""Coverage-guided fuzzing with atheris, which looks for inputs that reach new code; run it for hours, not in a test.

    pip install atheris
    python -m benchmarks.torture.coverage_fuzz config -max_total_time=600
    python -m benchmarks.torture.coverage_fuzz rows -max_total_time=600

What is not a ``P3OError`` stops it, and the input is kept in a file crash-….
"""

import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["p3o", "yaml"]):
    from p3o.config import RunConfig
    from p3o.config_loading import load_config
    from p3o.data.formats import KINDS
    from p3o.data.reading import read_examples
    from p3o.data.sources import SourceConfig
    from p3o.errors import P3OError

FOLDER = Path(tempfile.mkdtemp(prefix="p3o-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def config(content: bytes) -> None:
    """A configuration file."""
    path = FOLDER / "config.yaml"
    path.write_bytes(content)
    load_config(path, [], RunConfig)


def rows(content: bytes) -> None:
    """A file of rows: the first byte says of which format and kind."""
    if content:
        path = FOLDER / ("rows.jsonl", "rows.csv", "rows.tsv")[content[0] % 3]
        path.write_bytes(content[1:])
        examples, report = read_examples(SourceConfig(path=str(path)), KINDS[content[0] // 3 % len(KINDS)], "skip")
        assert len(examples) == report.kept, "a row is lost without a count"


TARGETS: dict[str, Callable[[bytes], None]] = {"config": config, "rows": rows}


def main() -> None:
    """Read the command line: the target, then libFuzzer's own options."""
    target = TARGETS[sys.argv.pop(1)]

    def one_input(content: bytes) -> None:
        with suppress(P3OError):
            target(content)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
