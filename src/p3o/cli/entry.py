"""Run the command line: every way in which a command can end becomes an exit code and, if need be, a line that tells why."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import typer

from p3o.cli.app import app
from p3o.errors import P3OError, first_line
from p3o.files import plain_reason
from p3o.stopping import Stopped, sigterm_stops

COMPLETION = "_P3O_COMPLETE"
"""Set by the shell function of ``p3o --install-completion``."""


_LESS_MEMORY = (
    "lower rl.training.micro_batch_tokens (in a pass) or rl.training.sampling_prompts (sampled together), micro_batch_size of "
    "sft or reward.train, set gradient_checkpointing: true, or train LoRA; --dry-run estimates what each stage needs"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``sys.argv`` is read when ``arguments`` is None."""
    try:
        code = _invoke(sys.argv[1:] if arguments is None else arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a reader who has left can still be told apart
        return code
    except P3OError as error:
        return _fail(str(error))
    except typer.TyperException as error:  # wrong usage
        context = getattr(error, "ctx", None)
        return _fail(f"{error.format_message().rstrip('.')} (see {context.command_path if context else 'p3o'} --help)")
    except (KeyboardInterrupt, Stopped) as stop:
        return _fail(str(stop) or "interrupted", code=128 + getattr(stop, "signal", signal.SIGINT))
    except BrokenPipeError:
        _discard_output()
        return 0
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich's answer to a closed pipe, in help and tables
            return 0
        raise
    except Exception as error:
        if (reason := _no_mistake(error)) is not None:
            return _fail(reason)
        traceback.print_exc()
        return _fail("this is a bug in p3o; please report it with the command and the lines above", code=1)


def _no_mistake(error: Exception) -> str | None:
    """What to tell of an error that is the machine's and not the program's; None of another."""
    if isinstance(error, OSError) and (reason := plain_reason(error)) is not None:
        _discard_output()
        return f"{error.filename or 'writing'}: {reason}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return f"{first_line(error)}; {_LESS_MEMORY}"
    return None


def _invoke(arguments: Sequence[str]) -> int:
    """The command, without its own main(), which would turn a closed pipe into exit code 1 and hide Ctrl-C."""
    command = typer.main.get_command(app)
    if COMPLETION in os.environ:
        command.main(prog_name="p3o")  # the shell asks what could come next; ends the process
    try:
        with command.make_context("p3o", list(arguments)) as context, sigterm_stops():
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def _fail(message: str, code: int = 2) -> int:
    for line in message.splitlines():
        typer.echo(f"error: {line}", err=True)
    return code


def _discard_output() -> None:
    """What standard output still holds goes nowhere, or the interpreter would fail on it again at its end."""
    with suppress(AttributeError, OSError):  # no standard output, or one that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
