"""Raw rows of tables: CSV and parquet files, and data sets that the ``datasets`` library reads."""

import csv
import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p3o.data.jsonl import MALFORMED
from p3o.data.rows import BadRowError, RawRow
from p3o.errors import P3OError, did_you_mean, first_line
from p3o.files import open_for_reading, plain_reason

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hub:"
"""A path that begins so is a data set of the Hugging Face hub."""


def csv_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a CSV file (or TSV, by its ending) with a header; every cell is a text.

    Raises:
        P3OError: if the file cannot be read, is not UTF-8, or has no sound header.
    """
    csv.field_size_limit(sys.maxsize)  # a long text is no malformed one; Python's own limit is 128 KiB
    with open_for_reading(path) as file:
        # newline="": the csv module ends rows itself, for a quoted cell may hold line ends.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        first = 1
        try:
            header = next(reader, [])
            _check_header(path, header)
            first = reader.line_num + 1
            for cells in reader:
                place = f"{path}:{first}"
                first = reader.line_num + 1
                if len(cells) == len(header):
                    yield RawRow(place, dict(zip(header, cells, strict=True)))
                elif cells:
                    problem = f"has {len(cells)} cells but the header has {len(header)}; quote cells that hold commas"
                    yield RawRow(place, BadRowError(MALFORMED, problem))
        except UnicodeDecodeError as error:
            # The decoder works on blocks, so the line is not known.
            raise P3OError(
                f"{path}: not UTF-8 after line {first - 1} (byte 0x{error.object[error.start]:02x}); save the file as UTF-8"
            ) from error
        except csv.Error as error:  # what follows cannot be told apart into rows any more
            raise P3OError(f"{path}:{first}: malformed CSV: {error}; correct it, or write the file as JSONL") from error


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise P3OError(f"{path}: has no rows; the first line must name the columns")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise P3OError(f"{path}:1: the column {twice!r} appears twice; rename one")


def parquet_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a parquet file, read in pieces.

    Raises:
        P3OError: if the file cannot be read or pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise P3OError(f"{path}: reading parquet needs pyarrow; pip install 'p3o[data]'") from error
    number = 0
    with open_for_reading(path) as file:
        try:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
                for columns in batch.to_pylist():
                    number += 1
                    yield RawRow(f"{path}:row {number}", columns)
        except (ArrowException, OSError, ValueError) as error:  # the last for names and texts that are no UTF-8
            raise P3OError(f"{path}: cannot be read as parquet: {first_line(error)}") from error


def dataset_rows(
    path: str, *, name: str | None, data_dir: str | None, split: str, revision: str | None
) -> Iterator[RawRow]:
    """The rows of a data set: ``hub:OWNER/NAME``, or a local folder (data files, or what ``save_to_disk`` wrote).

    Args:
        path: as the user named it; places begin with it.
        name: a configuration of the data set.
        data_dir: a folder inside it.
        split: also a slice of one, such as ``train[:1000]``.
        revision: branch, tag or commit of a hub data set.

    Raises:
        P3OError: if it cannot be loaded: offline, missing, script-based, no such split.
    """
    dataset = _load(path, name=name, data_dir=data_dir, split=split, revision=revision)
    for number, columns in enumerate(dataset, start=1):
        yield RawRow(f"{path} [{split}]:row {number}", columns)


def _load(path: str, *, name: str | None, data_dir: str | None, split: str, revision: str | None) -> "Dataset":
    try:
        import datasets
    except ImportError as error:
        raise P3OError(f"{path}: reading it needs the package datasets; pip install 'p3o[data]'") from error
    library = logging.getLogger("datasets")
    level = library.level
    library.setLevel(logging.CRITICAL)  # it logs what it then raises
    try:
        if not path.startswith(HUB) and any(
            (Path(path) / mark).is_file() for mark in ("dataset_dict.json", "state.json")
        ):
            return _saved(path, split, datasets)
        loaded: Dataset = datasets.load_dataset(
            path.removeprefix(HUB), name, data_dir=data_dir, split=split, revision=revision
        )
    except P3OError:
        raise
    except Exception as error:  # the library and those below it raise dozens of kinds, all of them about this source
        raise P3OError(f"{path}: cannot be read: {_plain(error, path)}") from error
    finally:
        library.setLevel(level)
    return loaded


def _saved(path: str, split: str, datasets: Any) -> "Dataset":
    """What ``save_to_disk`` wrote: one split, or a dictionary of splits."""
    loaded = datasets.load_from_disk(path)
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            advice = did_you_mean(split, loaded) or f"it has {', '.join(loaded)}"
            raise P3OError(f"{path}: has no split {split!r}; {advice}")
        loaded = loaded[split]
    found: Dataset = loaded
    return found


def _plain(error: Exception, path: str) -> str:
    """Why a data set could not be loaded and what to do about it, on one line."""
    told = first_line(error)
    if "Dataset scripts are no longer supported" in told:
        return (
            "it is generated by a script, which datasets >= 4 does not run; set revision: refs/convert/parquet, "
            "and data_dir to the name of the part"
        )
    if "OfflineMode" in told or "Couldn't reach" in told:
        return (
            "it is not in the local cache and the hub cannot be reached (or HF_HUB_OFFLINE is set); "
            "download it on a machine with a network, or name local files"
        )
    if isinstance(error, OSError) and (reason := plain_reason(error)) is not None:
        return reason
    if not path.startswith(HUB) and "data files" in told:
        return f"no data files in this folder ({told})"
    cause = error.__cause__
    whole = f"{told} ({first_line(cause)})" if cause is not None else told
    return (
        whole
        if path.startswith(HUB) or "split" in told
        else f"{whole}; name one file, or a folder of data files with the same columns"
    )
