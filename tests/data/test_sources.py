"""CSV, parquet, dataset folders and the hub give the same rows as JSONL, each with its place."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from pydantic import ValidationError

from p3o.config import DataConfig
from p3o.data.formats import Example, Message
from p3o.data.reading import read_examples, richest_kind
from p3o.data.rows import BadRowError
from p3o.data.sources import SourceConfig
from p3o.errors import P3OError

Write = Callable[..., Path]
TEXTS = [
    {"prompt": "What is a skink?", "chosen": " A lizard, mostly.", "rejected": " A bird."},
    {"prompt": 'Say "hi",\nplease', "chosen": " hi", "rejected": " ho"},
]
EXAMPLES = [Example(row["prompt"], (row["chosen"], row["rejected"])) for row in TEXTS]
HI = [{"role": "user", "content": "Hi"}]
CHATS = [{"prompt": HI, "completion": [{"role": "assistant", "content": text}]} for text in ("Hello", "Yo")]


def examples_of(source: SourceConfig, kind: Any = "preferences") -> list[Example]:
    return [placed.example for placed in read_examples(source, kind)[0]]


def places_of(source: SourceConfig, kind: Any = "preferences") -> list[str]:
    return [placed.place for placed in read_examples(source, kind)[0]]


@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("TSV", "\t")])
def test_csv_gives_the_same_rows(tmp_path: Path, ending: str, delimiter: str) -> None:
    path = tmp_path / f"rows.{ending}"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows([*TEXTS, TEXTS[0]])
    source = SourceConfig(path=str(path))
    assert examples_of(source) == [*EXAMPLES, EXAMPLES[0]]
    assert places_of(source) == [f"{path}:2", f"{path}:3", f"{path}:5"], "a cell with a line end takes two lines"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no rows; the first line must name the columns"),
        ("prompt,prompt\na,b\n", ":1: the column 'prompt' appears twice"),
        ("prompt,completion\na,b\nc\n", ":3: has 1 cells but the header has 2"),
        ("prompt,completion\na,b,c\n", ":2: has 3 cells but the header has 2; quote cells that hold commas"),
        ("prompt,completion\na,\n", ":2: 'completion' is empty"),
        ('prompt,completion\na,"b\n', ":2: malformed CSV"),
        ('prompt,completion\na,"b"c\n', ":2: malformed CSV"),
        ("promt,completion\na,b\n", ":2: no column 'prompt', only 'promt', 'completion'; did you mean 'promt'?"),
    ],
)
def test_a_bad_csv_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(P3OError) as caught:
        read_examples(SourceConfig(path=str(path)), "demonstrations")
    assert f"{path}{told}" in str(caught.value).replace(f"{path}: ", str(path))
    assert "\n" not in str(caught.value)


def test_a_csv_may_hold_long_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt\n{'word ' * 60_000}\nshort\n")
    assert [len(str(example.prompt)) for example in examples_of(SourceConfig(path=str(path)), "prompts")] == [
        300_000,
        5,
    ]


def test_a_csv_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt\ncaf\xe9\n")
    with pytest.raises(P3OError, match=r"rows\.csv: not UTF-8 .*0xe9"):
        read_examples(SourceConfig(path=str(path)), "prompts")


def test_parquet_gives_the_same_rows_and_conversations(tmp_path: Path) -> None:
    texts, chats = tmp_path / "texts.parquet", tmp_path / "chats.parquet"
    datasets.Dataset.from_list(TEXTS).to_parquet(texts)
    datasets.Dataset.from_list(CHATS).to_parquet(chats)
    assert examples_of(SourceConfig(path=str(texts))) == EXAMPLES
    assert places_of(SourceConfig(path=str(texts))) == [f"{texts}:row 1", f"{texts}:row 2"]
    conversations = examples_of(SourceConfig(path=str(chats)), "demonstrations")
    assert conversations == [Example((Message("user", "Hi"),), (text,)) for text in ("Hello", "Yo")]


def test_a_bad_parquet_file_and_row_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(P3OError, match=r"rows\.parquet: cannot be read as parquet"):
        read_examples(SourceConfig(path=str(path)), "prompts")
    with pytest.raises(P3OError, match=r"none\.parquet: cannot be read: no such file"):
        read_examples(SourceConfig(path=str(tmp_path / "none.parquet")), "prompts")
    datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": None}]).to_parquet(path)
    with pytest.raises(P3OError, match=r"rows\.parquet:row 2: 'prompt' is null"):
        read_examples(SourceConfig(path=str(path)), "prompts")


def test_a_folder_of_data_files_with_splits(write: Write, tmp_path: Path) -> None:
    write(*TEXTS, name="set/part/train.jsonl")
    write(TEXTS[1], name="set/part/test.jsonl")
    folder = str(tmp_path / "set")
    assert examples_of(SourceConfig(path=folder, data_dir="part")) == EXAMPLES
    test = SourceConfig(path=folder, data_dir="part", split="test")
    assert places_of(test) == [f"{folder} [test]:row 1"]
    assert examples_of(SourceConfig(path=folder, data_dir="part", split="train[1:]")) == EXAMPLES[1:]
    with pytest.raises(P3OError, match=r"set: cannot be read: .*[Uu]nknown split"):
        read_examples(SourceConfig(path=folder, data_dir="part", split="tset"), "prompts")


def test_a_folder_that_save_to_disk_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(TEXTS)}).save_to_disk(folder)
    assert examples_of(SourceConfig(path=str(folder))) == EXAMPLES
    assert examples_of(SourceConfig(path=str(folder / "train"))) == EXAMPLES
    with pytest.raises(P3OError, match=r"saved: has no split 'trian'; did you mean 'train'\?"):
        read_examples(SourceConfig(path=str(folder), split="trian"), "preferences")


def test_a_folder_of_files_that_do_not_belong_together(write: Write, tmp_path: Path) -> None:
    write(*TEXTS, name="set/train-1.jsonl")
    write({"epochs": 3}, name="set/train-2.jsonl")
    with pytest.raises(P3OError, match="name one file, or a folder of data files with the same columns"):
        read_examples(SourceConfig(path=str(tmp_path / "set")), "prompts")


def test_a_damaged_folder_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt":')
    with pytest.raises(P3OError, match=r"cannot be read: .*JSON parse error") as caught:
        read_examples(SourceConfig(path=str(tmp_path)), "prompts")
    assert "\n" not in str(caught.value)
    assert "Failed to load" not in capfd.readouterr().err


def test_the_hub_is_not_asked_when_offline() -> None:
    with pytest.raises(
        P3OError, match=r"^hub:trl-lib/tldr: cannot be read: it is not in the local cache .*HF_HUB_OFFLINE"
    ):
        read_examples(SourceConfig(path="hub:trl-lib/tldr"), "prompts")


def test_the_hub_is_asked_for_what_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load_dataset(*arguments: Any, **settings: Any) -> datasets.Dataset:
        calls.append((arguments, settings))
        return datasets.Dataset.from_list(TEXTS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = SourceConfig(path="hub:a/b", name="part", data_dir="dir", split="test[:2]", revision="v1")
    assert places_of(source) == ["hub:a/b [test[:2]]:row 1", "hub:a/b [test[:2]]:row 2"]
    assert calls == [(("a/b", "part"), {"data_dir": "dir", "split": "test[:2]", "revision": "v1"})]
    examples_of(SourceConfig(path="hub:a/b"))
    assert calls[1][1]["split"] == "train"


def test_columns_are_read_under_other_names(write: Write) -> None:
    path = str(write({"prompt": "unused", "question": "Q", "answers": "A", "messages": 3}))
    source = SourceConfig(path=path, columns={"prompt": "question", "completion": "answers"})
    assert examples_of(source, "demonstrations") == [Example("Q", ("A",))]
    missing = SourceConfig(path=path, columns={"prompt": "qestion"})
    with pytest.raises(P3OError, match=r"rows\.jsonl:1: no column 'qestion'.* did you mean 'question'\?"):
        read_examples(missing, "prompts")
    hidden = SourceConfig(path=path, columns={"prompt": None})
    with pytest.raises(P3OError, match="'messages' is a number"):
        read_examples(hidden, "prompts")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "a"}, "prompts"),
        ({"prompt": "a", "completion": "b"}, "demonstrations"),
        ({"messages": HI}, "demonstrations"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences"),
        ({"chosen": "a b", "rejected": "a c"}, "preferences"),
    ],
)
def test_the_kind_is_told_by_the_columns(write: Write, row: dict[str, Any], kind: str) -> None:
    assert richest_kind(SourceConfig(path=str(write("not JSON", row)))) == kind


def test_a_source_is_a_path_or_a_mapping() -> None:
    config = DataConfig.model_validate(
        {"prompts": "a.jsonl", "preferences": {"path": "hub:a/b", "split": "test", "columns": {"chosen": "best"}}}
    )
    assert config.prompts == SourceConfig(path="a.jsonl")
    written = config.model_dump(mode="json")
    assert written["prompts"] == "a.jsonl"
    assert written["preferences"] == {"path": "hub:a/b", "split": "test", "columns": {"chosen": "best"}}
    assert DataConfig.model_validate(written) == config
    assert list(config.sources()) == ["prompts", "preferences"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (3, "should be a file, a folder, hub:OWNER/NAME, or a mapping with 'path'"),
        ("hub:tldr", "a hub data set is named hub:OWNER/NAME"),
        ({"path": "a.jsonl", "adapter": "tdlr"}, "unknown adapter 'tdlr'; did you mean 'tldr'?"),
        ({"path": "a.jsonl", "revision": "main"}, "only a hub data set has revisions"),
        ({"path": "a.jsonl", "splt": "x"}, "Extra inputs are not permitted"),
        ({"path": ""}, "at least 1 character"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(value: Any, told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SourceConfig.model_validate(value)
    assert told in str(caught.value)


def test_what_is_said_of_data_sets_is_not_said_of_a_file(write: Write) -> None:
    with pytest.raises(P3OError, match="is a file, but 'split' is only for folders and hub data sets; remove it"):
        read_examples(SourceConfig(path=str(write({"prompt": "a"})), split="train"), "prompts")


def test_a_malformed_line_is_a_bad_row(write: Write) -> None:
    rows = list(SourceConfig(path=str(write("{", {"prompt": "a"}))).raw_rows())
    assert isinstance(rows[0].columns, BadRowError)
    assert rows[1].columns == {"prompt": "a"}
