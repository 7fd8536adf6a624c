"""structlog without `rich`.

structlog loads `rich` where it is installed, for tracebacks in colours. The command line has it installed, and each
process of the mesh would keep 4 MB of it that nobody uses: lines are JSON, and commands draw for themselves.
"""

from __future__ import annotations

import sys

# None in its place is how Python is told that a module is not to be found; whoever asks later finds it.
_hidden = "rich" not in sys.modules
if _hidden:
    sys.modules["rich"] = None  # type: ignore[assignment] # documented, and not in the type
try:
    import structlog
finally:
    if _hidden:
        del sys.modules["rich"]

__all__ = ["structlog"]
