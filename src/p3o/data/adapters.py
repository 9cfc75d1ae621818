"""The adapters by name. Each turns a data set's own columns into ours and knows nothing of files.

An adapter is a function of one row's columns. It raises ``BadRowError`` for a row that is not as the data set's rows should
be and ``OtherTaskError`` for one that belongs to another task. Adding one is a file and a line here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from p3o.data.hh import hh
from p3o.data.summarize_feedback import summarize_feedback
from p3o.data.tldr import tldr

Columns = Mapping[str, Any]
Adapter = Callable[[Columns], Columns]

ADAPTERS: dict[str, Adapter] = {"tldr": tldr, "summarize_feedback": summarize_feedback, "hh": hh}
