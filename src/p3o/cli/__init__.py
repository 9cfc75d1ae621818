"""The command line: parse, call, print. One file per family of commands; what takes long to import is imported inside them.

Exit codes: 0 done; 1 a gate that was not passed, or a mistake in p3o itself; 2 a mistake in what it was given, told in a
line that begins with "error:"; 130 stopped by Ctrl-C.
"""

from p3o.cli import checks as _checks
from p3o.cli import data as _data
from p3o.cli import judge as _judge
from p3o.cli import label as _label
from p3o.cli import records as _records
from p3o.cli import report as _report
from p3o.cli import serve as _serve
from p3o.cli import stages as _stages
from p3o.cli import start as _start
from p3o.cli.entry import main

__all__ = ["main"]

# Importing a file of commands registers them.
_COMMANDS = (_start, _data, _stages, _report, _judge, _label, _serve, _records, _checks)
