"""How a service has its answer sent with another HTTP status than 200, where the method's rule names that status."""

from __future__ import annotations

OTHER_STATUS_KEY = "other-status"
OTHER_STATUS = ((OTHER_STATUS_KEY, "true"),)
"""Trailing metadata of an answer that goes out with `(method).other_status`."""
