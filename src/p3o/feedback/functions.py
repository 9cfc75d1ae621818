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

from p3o.errors import P3OError, did_you_mean, shorten

RewardFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""One finite reward per response; ``prompts[i]`` is the prompt of ``responses[i]``."""


def load_reward_function(spec: str) -> RewardFunction:
    """Import ``module:function``.

    The current directory is searched first and stays on ``sys.path``, for what the function itself imports later.

    Raises:
        P3OError: if the text has no colon, the module is missing or fails on import, or it has no such function of
            ``(prompts, responses)``.
    """
    return cast(RewardFunction, load_function(spec, "reward function", ("prompts", "responses")))


def load_function(spec: str, role: str, parameters: Sequence[str]) -> Callable[..., Any]:
    """Import ``module:function`` for another role than a reward; it must take these parameters, in order.

    Raises:
        P3OError: as ``load_reward_function``, with the role in its place.
    """
    module_name, colon, function_name = spec.partition(":")
    named = [function_name, *module_name.split(".")]
    if not colon or not all(map(str.isidentifier, named)) or named[-1] == "py":
        raise P3OError(f"{role} {spec!r}: not of the form module:function; {_form_advice(module_name)}")
    module = _import(module_name, f"{role} {spec!r}")
    function = getattr(module, function_name, None)
    if function is None:
        names = [name for name, value in vars(module).items() if callable(value)]
        advice = did_you_mean(function_name, names) or f"define it in {_file_of(module)}"
        raise P3OError(f"{role} {spec!r}: the module has no function {function_name!r}; {advice}")
    listed = ", ".join(parameters)
    if not callable(function):
        raise P3OError(
            f"{role} {spec!r}: {function_name!r} is {_article(function)}, not a function; name a function of ({listed})"
        )
    try:
        inspect.signature(function).bind(*([] for _ in parameters))
    except TypeError as error:
        raise P3OError(
            f"{role} {spec!r}: cannot be called as {function_name}({listed}): {error}; "
            f"give it these {'two' if len(parameters) == 2 else len(parameters)} parameters"
        ) from error
    except ValueError:  # compiled functions may have no signature to look at
        pass
    return cast(Callable[..., Any], function)


def call_reward_function(
    function: RewardFunction, prompts: Sequence[str], responses: Sequence[str], *, name: str
) -> list[float]:
    """The rewards of these responses, checked to be one finite number each.

    Args:
        function: gets copies of both lists. It may return any sequence of numbers: a list, an array, a tensor.
        prompts: ``prompts[i]`` is the prompt of ``responses[i]``.
        responses: what was generated.
        name: what to call the function in an error, such as "rewards:polite".

    Raises:
        P3OError: if the function raises, or returns the wrong count, something else than numbers, NaN or an infinity.
        ValueError: if there are not as many prompts as responses.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses")
    try:
        returned = function(list(prompts), list(responses))
    except (Exception, SystemExit) as error:
        where = _culprit(function, prompts, responses)
        raise P3OError(f"reward function {name!r} raised {_summary(error)}{where}; mend it and run again") from error
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        hint = " (is a return statement missing?)" if returned is None else ""
        raise P3OError(f"reward function {name!r} returned {_article(returned)}{hint}; return a list of numbers")
    if len(values) != len(responses):
        raise P3OError(
            f"reward function {name!r} returned {len(values)} rewards for {len(responses)} responses; "
            "return one for each, in order"
        )
    return [_finite(value, index, prompts[index], name) for index, value in enumerate(values)]


def _finite(value: Any, index: int, prompt: str, name: str) -> float:
    where = f"for response {index} (prompt {shorten(prompt)})"
    try:
        if isinstance(value, str | bytes):  # float() would read "1.5", and hide that the function returns texts
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise P3OError(
            f"reward function {name!r} returned {shorten(value)} {where}; every reward must be a number"
        ) from error
    if not math.isfinite(number):
        raise P3OError(f"reward function {name!r} returned {number} {where}; every reward must be finite")
    return number


def _culprit(function: RewardFunction, prompts: Sequence[str], responses: Sequence[str]) -> str:
    """Which response the function fails on, found by asking again one by one; the run ends anyway."""
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        try:
            function([prompt], [response])
        except (Exception, SystemExit):
            return f" for response {index} (prompt {shorten(prompt)})"
    return f" for a batch of {len(responses)} responses, though for none of them alone"


def _import(module_name: str, named: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None:
            problem = f"the module fails on import: {_summary(error)}; mend it and run again"
        elif f"{module_name}.".startswith(f"{missing}."):
            files = [path.stem for path in Path(here).glob("*.py")]
            advice = did_you_mean(module_name, files) or f"put {missing}.py into the current directory"
            problem = f"no module {missing!r} in {here} or installed; {advice}"
        else:
            problem = f"the module needs {missing!r}, which is not installed; install it"
        raise P3OError(f"{named}: {problem}") from error


def _summary(error: BaseException) -> str:
    """An exception in a line: its type, the first line of its message and the place it was raised at."""
    message = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
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
