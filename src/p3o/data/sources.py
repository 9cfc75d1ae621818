"""Where rows come from: a file, a folder or a data set of the hub, named in a configuration or on the command line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from p3o.data.adapters import ADAPTERS
from p3o.data.jsonl import jsonl_rows
from p3o.data.rows import RawRow
from p3o.data.tables import HUB, csv_rows, dataset_rows, parquet_rows
from p3o.errors import P3OError, did_you_mean
from p3o.files import path_is_possible, plain_os_errors

_OF_DATASETS = ("name", "data_dir", "split", "revision")


class SourceConfig(BaseModel):
    """One source of rows. In YAML a path alone is enough: ``prompts: prompts.jsonl``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(
        min_length=1, description="A .jsonl, .csv, .tsv or .parquet file, a folder of such files, or hub:OWNER/NAME."
    )
    name: str | None = Field(None, description="Configuration, for a data set that has several.")
    data_dir: str | None = Field(None, description="Folder inside a data set, such as helpful-base.")
    split: str | None = Field(None, description="Split of a data set, or a slice: train[:1000]; null: train.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub data set.")
    adapter: str | None = Field(None, description="Adapter that converts the data set's columns to ours: tldr, hh, ….")
    columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="Renamed columns, as our name: name in the data set (after the adapter); null: ignore that column.",
    )

    @model_validator(mode="before")
    @classmethod
    def from_path(cls, value: Any) -> Any:
        """A text is a path."""
        if isinstance(value, str):
            return {"path": value}
        if isinstance(value, dict | SourceConfig):
            return value
        raise ValueError("should be a file, a folder, hub:OWNER/NAME, or a mapping with 'path'")

    @model_validator(mode="after")
    def consistent(self) -> "SourceConfig":
        """The adapter exists, and what is said of data sets is said of one."""
        if self.adapter is not None and self.adapter not in ADAPTERS:
            advice = did_you_mean(self.adapter, ADAPTERS) or f"known are {', '.join(ADAPTERS)}"
            raise ValueError(f"unknown adapter {self.adapter!r}; {advice}")
        if self.path.startswith(HUB):
            owner, slash, name = self.path.removeprefix(HUB).partition("/")
            if not (owner and slash and name) or "/" in name:
                raise ValueError(f"{self.path}: a hub data set is named hub:OWNER/NAME")
        elif self.revision is not None:
            raise ValueError("revision: only a hub data set has revisions")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, serialise: Any) -> Any:
        """Only what was given; a path alone as a text."""
        given = {key: value for key, value in serialise(self).items() if value not in (None, {})}
        return self.path if set(given) == {"path"} else given

    def __str__(self) -> str:
        """How messages name it."""
        extra = [text for text in (self.name, self.data_dir) if text]
        place = f"{self.path} {'/'.join(extra)}" if extra else self.path
        return f"{place} [{self.split}]" if self.split else place

    def raw_rows(self) -> Iterator[RawRow]:
        """The rows as they stand there, before adapter and columns.

        Raises:
            P3OError: if the source cannot be read.
        """
        if not self.path.startswith(HUB) and not path_is_possible(Path(self.path)):
            raise P3OError(f"{self.path!r}: not a valid path; it contains characters that no file name can have")
        path = Path(self.path)
        with plain_os_errors(path, "read"):  # asking about a name that is too long is refused as well
            is_folder, is_file = path.is_dir(), path.is_file()
        if self.path.startswith(HUB) or is_folder:
            return dataset_rows(
                self.path,
                name=self.name,
                data_dir=self.data_dir,
                split=self.split or "train",
                revision=self.revision,
            )
        given = next((key for key in _OF_DATASETS if getattr(self, key) is not None), None)
        if given is not None and is_file:
            raise P3OError(f"{self.path}: is a file, but '{given}' is only for folders and hub data sets; remove it")
        if path.suffix.lower() in (".csv", ".tsv"):
            return csv_rows(path)
        return parquet_rows(path) if path.suffix.lower() == ".parquet" else jsonl_rows(path)
