"""Where uploads wait for the request that names them.

The gateway stores a request's files in this folder of the tenant and passes `staging:<path>` in their place; the
service that takes the request copies them to where they belong and deletes what nobody took.
"""

from __future__ import annotations

STAGING_FOLDER = "staging"
STAGING_SCHEME = "staging:"


def is_staged(path: str) -> bool:
    """Tell whether a normalised path lies in the folder."""
    return path.startswith(f"{STAGING_FOLDER}/")
