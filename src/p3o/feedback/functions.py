"""Rewards from a user's Python function: found by ``module:function``, called with care.

    def polite(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [float("please" in response) for response in responses]

The function is someone else's code, so whatever it does wrong becomes one ``P3OError`` that names it.
"""

import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from p3o.errors import P3OError, did_you_mean, first_line, shorten

RewardFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""One finite reward per response; ``prompts[i]`` is the prompt of ``responses[i]``."""


def load_reward_function(spec: str) -> RewardFunction:
    """Import ``module:function``.

    The current directory is searched first and stays on ``sys.path``, for what the function itself imports later.

    Raises:
        P3OError: if the text has no colon, the module is missing or fails on import, or it has no such function of
            ``(prompts, responses)``.
    """
    return cast(RewardFunction, load_function(spec, kind="reward function", parameters=("prompts", "responses")))


def load_function(spec: str, *, kind: str, parameters: Sequence[str]) -> Callable[..., Any]:
    """Import ``module:function``, a function of ``parameters``; errors call it by its ``kind``.

    Raises:
        P3OError: as of ``load_reward_function``.
    """
    module_name, colon, function_name = spec.partition(":")
    named = [function_name, *module_name.split(".")]
    if not colon or not all(map(str.isidentifier, named)) or named[-1] == "py":
        raise P3OError(f"{kind} {spec!r}: must have the form module:function; {_form_advice(module_name)}")
    module = _import(module_name, f"{kind} {spec!r}")
    function = getattr(module, function_name, None)
    called = f"{function_name}({', '.join(parameters)})"
    if function is None:
        names = [name for name, value in vars(module).items() if callable(value)]
        advice = did_you_mean(function_name, names) or f"define it in {_file_of(module)}"
        raise P3OError(f"{kind} {spec!r}: the module has no function {function_name!r}; {advice}")
    if not callable(function):
        raise P3OError(
            f"{kind} {spec!r}: {function_name!r} is {_article(function)}, not a function; "
            f"name a function of ({', '.join(parameters)})"
        )
    try:
        inspect.signature(function).bind(*([] for _ in parameters))
    except TypeError as error:
        count = {2: "two", 3: "three"}[len(parameters)]
        raise P3OError(
            f"{kind} {spec!r}: cannot be called as {called}: {error}; give it these {count} parameters"
        ) from error
    except ValueError:  # compiled functions may have no signature to look at
        pass
    return cast(Callable[..., Any], function)


def call_reward_function(
    function: RewardFunction, prompts: Sequence[str], responses: Sequence[str], *, name: str, finite: bool = True
) -> list[float]:
    """The rewards of these responses, checked to be one finite number each.

    Args:
        function: gets copies of both lists. It may return any sequence of numbers: a list, an array, a tensor.
        prompts: ``prompts[i]`` is the prompt of ``responses[i]``.
        responses: what was generated.
        name: what to call the function in an error, such as "rewards:polite".
        finite: False lets NaN and infinities through, for a caller that leaves such responses out and counts them.

    Raises:
        P3OError: if the function raises, or returns the wrong count, something else than numbers, NaN or an infinity.
        ValueError: if there are not as many prompts as responses.
    """
    return call_function(
        function,
        (prompts, responses),
        kind="reward function",
        name=name,
        row="response",
        value="reward",
        finite=finite,
    )


def call_function(
    function: Callable[..., Any],
    columns: Sequence[Sequence[str]],
    *,
    kind: str,
    name: str,
    row: str,
    value: str,
    finite: bool = True,
) -> list[float]:
    """One finite number per row of these columns, the first of which holds the prompts.

    Args:
        kind: how an error speaks of the function.
        name: of the function, likewise.
        row: how it speaks of one row.
        value: and of what the function returns.
        finite: as of ``call_reward_function``.

    Raises:
        P3OError, ValueError: as of ``call_reward_function``.
    """
    rows = len(columns[0])
    if any(len(column) != rows for column in columns):
        counts = " for ".join(str(len(column)) for column in columns)
        raise ValueError(f"{counts}: give one prompt for each {row}")
    called = f"{kind} {name!r}"
    try:
        returned = function(*map(list, columns))
    except (Exception, SystemExit) as error:
        where = _culprit(function, columns, row)
        raise P3OError(f"{called} raised {_summary(error)}{where}; fix it and run again") from error
    values = _as_sequence(returned, called)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        hint = " (is a return statement missing?)" if returned is None else ""
        raise P3OError(f"{called} returned {_article(returned)}{hint}; return a list of numbers")
    if len(values) != rows:
        raise P3OError(f"{called} returned {len(values)} {value}s for {rows} {row}s; return one for each, in order")
    wheres = (f"for {row} {index} (prompt {shorten(prompt)})" for index, prompt in enumerate(columns[0]))
    numbers = []
    for returned_value, where in zip(values, wheres, strict=True):
        number = _number(returned_value, where, called, value)
        if finite and not math.isfinite(number):
            raise P3OError(f"{called} returned {number} {where}; every {value} must be finite")
        numbers.append(number)
    return numbers


def _as_sequence(returned: Any, called: str) -> Any:
    """Arrays and tensors as lists, whatever else there is as it is."""
    try:
        return returned.tolist() if hasattr(returned, "tolist") else returned
    except Exception as error:
        raise P3OError(
            f"{called} returned {_article(returned)} that cannot be converted to a list: {_summary(error)}"
        ) from error


def _number(returned: Any, where: str, called: str, value: str) -> float:
    try:
        if isinstance(returned, str | bytes):  # float() would read "1.5", and hide that the function returns texts
            raise TypeError
        return float(returned)
    except Exception as error:  # somebody else's __float__
        raise P3OError(f"{called} returned {shorten(returned)} {where}; every {value} must be a number") from error


def _culprit(function: Callable[..., Any], columns: Sequence[Sequence[str]], row: str) -> str:
    """Which row the function fails on, found by asking again one by one; the run ends anyway."""
    for index, cells in enumerate(zip(*columns, strict=True)):
        try:
            function(*([cell] for cell in cells))
        except (Exception, SystemExit):
            return f" for {row} {index} (prompt {shorten(cells[0])})"
    return f" for a batch of {len(columns[0])} {row}s, though not for any of them alone"


def _import(module_name: str, asked_for: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None:
            problem = f"the module fails on import: {_summary(error)}; fix it and run again"
        elif f"{module_name}.".startswith(f"{missing}."):
            problem = f"no module {missing!r} in {here} or installed; {_place_advice(module_name, here)}"
        else:
            problem = f"the module needs {missing!r}, which is not installed; install it"
        raise P3OError(f"{asked_for}: {problem}") from error


def _place_advice(module_name: str, here: str) -> str:
    if "." in module_name:
        file = Path(*module_name.split(".")).with_suffix(".py")
        return f"start p3o in the folder that has {file}, or name that folder in PYTHONPATH"
    files = [path.stem for path in Path(here).glob("*.py")]
    return did_you_mean(module_name, files) or f"put {module_name}.py into the current directory"


def _summary(error: BaseException) -> str:
    """An exception in a line: its type, the first line of its message and the place it was raised at."""
    name, message = type(error).__name__, first_line(error)
    text = name if message == name else f"{name}: {message}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else text


def _form_advice(module_name: str) -> str:
    path = Path(module_name)
    if path.suffix == ".py":
        return f"name the module, not its file: '{'.'.join(path.with_suffix('').parts)}:function'"
    return "write for example 'rewards:polite' for the function polite in rewards.py"


def _file_of(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or module.__name__


def _article(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
