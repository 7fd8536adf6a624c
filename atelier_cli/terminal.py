"""The terminal: answers go to standard output, everything else to standard error."""

import sys
from typing import Final

from rich.console import Console

# Into a pipe or a file, no line is cut or wrapped.
_PIPE_COLUMNS: Final = 240

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
err = Console(highlight=False, soft_wrap=True, stderr=True)
