"""Reading a run folder: each file into typed rows, and every problem with its file and line.

``run.json``, ``config.yaml`` and ``metrics.jsonl`` must be there; the others may be missing (a run that stopped early, or
one without samples), and the report then says so in their place.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from p3o.errors import P3OError
from p3o.files import open_for_reading
from p3o.report.rundata import Comparison, Evaluation, Judgement, Response, RunData, RunInfo, Sample, TrainingStep

RowT = TypeVar("RowT", bound=BaseModel)


def read_run(folder: Path) -> RunData:
    """Read a run folder.

    Raises:
        P3OError: if a needed file is missing, or a file does not hold what its format says; with file and line.
    """
    if not folder.is_dir():
        raise P3OError(f"{folder}: no such run folder; give the folder that 'p3o run' wrote")
    info = _validated(RunInfo, _object(read_json(folder / "run.json"), str(folder / "run.json")), folder / "run.json")
    config = _read_text(folder / "config.yaml")
    stages = _rows_by_stage(folder / "metrics.jsonl")
    evaluations = [_validated(Evaluation, row, place) for place, row in stages["evaluate"]]
    shifted = [row for row in evaluations if row.reward_shift] + _shift_folder(folder / "shift" / "metrics.jsonl")
    steps = [_training_step(row, place) for place, row in stages["rl"]]
    if any(row.algorithm is not None and not row.reward_shift for row in evaluations):
        evaluations = [row for row in evaluations if not row.reward_shift]
        steps = [step for step in steps if not step.reward_shift]
    else:
        shifted = []
    training: dict[str, list[TrainingStep]] = {}
    for step in steps:
        training.setdefault(step.run, []).append(step)
    shown = {row.policy for row in evaluations}
    return RunData(
        folder=folder,
        info=info,
        config=config,
        evaluations=evaluations,
        shifted=shifted,
        sft=[_training_step(row, place) for place, row in stages["sft"]],
        reward_training=[_training_step(row, place) for place, row in stages["reward"]],
        reward_test=next((row for _, row in reversed(stages["reward_test"])), None),
        training=training,
        responses=_optional_rows(Response, folder / "responses.jsonl"),
        samples=[row for row in read_samples(folder) if row.policy in shown],
        comparisons=[row for row in read_comparisons(folder / "head_to_head.json") if {row.a, row.b} <= shown],
        judgements=[row for row in _optional_rows(Judgement, folder / "judgements.jsonl") if {row.a, row.b} <= shown],
    )


def read_samples(folder: Path) -> list[Sample]:
    """The rows of samples.jsonl; empty if there is no such file.

    Raises:
        P3OError: at the first row that is none, with file and line.
    """
    return _optional_rows(Sample, folder / "samples.jsonl")


def _rows_by_stage(metrics: Path) -> Mapping[str, list[tuple[str, dict[str, Any]]]]:
    """(file and line, row without its stage) of every row, by stage."""
    stages: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for place, row in _jsonl(metrics):
        stage = row.pop("stage", None)
        if not isinstance(stage, str):
            raise P3OError(f"{place}: the key 'stage' is missing; is this the metrics.jsonl of a p3o run?")
        stages[stage].append((place, row))
    return stages


def _shift_folder(metrics: Path) -> list[Evaluation]:
    """Evaluations of the same run with per-prompt offsets on its rewards, if it was made apart."""
    if not metrics.exists():
        return []
    evaluations = [_validated(Evaluation, row, place) for place, row in _rows_by_stage(metrics)["evaluate"]]
    return [row for row in evaluations if row.reward_shift]


def read_comparisons(path: Path) -> list[Comparison]:
    """The rows of head_to_head.json, SFT always the second; empty if there is no such file.

    Raises:
        P3OError: if it does not hold comparisons.
    """
    if not path.exists():
        return []
    rows = read_json(path)
    if not isinstance(rows, list):
        raise P3OError(f"{path}: expected a list of comparisons")
    found = []
    for index, row in enumerate(rows):
        place = f"{path}: entry {index}"
        comparison = _validated(Comparison, _object(row, place), place)
        found.append(comparison.mirrored() if comparison.a == "sft" else comparison)
    return found


def _optional_rows(kind: type[RowT], path: Path) -> list[RowT]:
    if not path.exists():
        return []
    return [_validated(kind, row, place) for place, row in _jsonl(path)]


def _training_step(row: Mapping[str, Any], place: str) -> TrainingStep:
    step = row.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise P3OError(f"{place}: 'step' must be an integer, got {step!r}")
    numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
    finite = {name: value for name, value in numbers.items() if abs(value) < float("inf")}
    algorithm = row.get("algorithm")
    return TrainingStep(
        run=str(row.get("run", "")),
        algorithm=algorithm if isinstance(algorithm, str) else None,
        reward_shift=finite.get("reward_shift", 0.0),
        step=step,
        values={name: value for name, value in finite.items() if name not in ("step", "beta", "reward_shift")},
    )


def _validated(kind: type[RowT], row: Mapping[str, Any], place: str | Path) -> RowT:
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        named = f"'{key}': " if key else ""
        raise P3OError(f"{place}: {named}{what[:1].lower()}{what[1:]}") from error


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, counted from 1; object) of every line that is not empty."""
    for line, text in enumerate(_read_text(path).split("\n"), start=1):
        if text.strip():
            place = f"{path}:{line}"
            yield place, _object(_parse_json(text, place), place)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        P3OError: if it cannot be read or is not whole.
    """
    return _parse_json(_read_text(path), str(path))


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        at = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise P3OError(f"{place}: not valid JSON{at}; the file was cut short or edited, restore it") from error


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise P3OError(f"{place}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_text(path: Path) -> str:
    with open_for_reading(path) as file:
        raw = file.read()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise P3OError(f"{path}:{line}: not UTF-8 text") from error
