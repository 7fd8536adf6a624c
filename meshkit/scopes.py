"""Scopes of methods: the contract's numbers and the names that tokens hold, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from atelier.options.v1 import options_pb2

from meshkit import auth

SCOPE_NAMES: Mapping[int, str] = MappingProxyType(
    {
        # A method whose contract names no scope is for services alone: what was forgotten is not public.
        options_pb2.SCOPE_UNSPECIFIED: auth.MESH,
        options_pb2.SCOPE_READ: auth.READ,
        options_pb2.SCOPE_WRITE: auth.WRITE,
        options_pb2.SCOPE_ADMIN: auth.ADMIN,
        options_pb2.SCOPE_OPERATOR: auth.OPERATOR,
        options_pb2.SCOPE_SUPPORT: auth.SUPPORT,
        options_pb2.SCOPE_WORKER: auth.WORKER,
        options_pb2.SCOPE_MESH: auth.MESH,
        # Any caller whose token holds.
        options_pb2.SCOPE_CALLER: "",
    }
)


def scope_name(number: int) -> str:
    """Return the scope that a token must hold for a method; empty for any token.

    Args:
        number: Number of the contract's `Scope`; one that this build does not know is for services alone.
    """
    return SCOPE_NAMES.get(number, auth.MESH)
