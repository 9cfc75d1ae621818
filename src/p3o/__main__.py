"""``python -m p3o`` is the command ``p3o``."""

import sys

from p3o.cli import main

sys.exit(main())
