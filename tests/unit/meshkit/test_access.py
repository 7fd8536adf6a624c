"""The caller of a method, and which records exist for it."""

from dataclasses import dataclass

import pytest

from meshkit import auth
from meshkit.access import Caller
from meshkit.auth import Principal
from meshkit.errors import ErrorKind, MeshError, not_found

PATH = "task.origin_tenant_id"


@dataclass(frozen=True)
class Record:
    tenant: str


def missing(ident: object) -> MeshError:
    return not_found("Thing", str(ident))


def caller_of(*scopes: str, tenant: str = "acme", named: str = "") -> Caller:
    token = auth.enter(Principal("ann", tenant, frozenset(scopes)), named)
    try:
        return Caller.of_call()
    finally:
        auth.leave(token)


@pytest.mark.parametrize(
    ("scopes", "reads", "writes"),
    [
        (("read", "write", "admin"), False, False),
        (("support",), True, False),
        (("operator",), True, True),
        (("mesh",), True, True),
    ],
)
def test_who_may_look_across_tenants(scopes: tuple[str, ...], reads: bool, writes: bool) -> None:
    caller = caller_of(*scopes, tenant="")
    assert (caller.reads_across, caller.writes_across) == (reads, writes)
    other = Record("globex")
    for write, allowed in ((False, reads), (True, writes)):
        if allowed:
            assert caller.seen(other, 1, missing, write=write) is other
        else:
            with pytest.raises(MeshError, match="Thing 1 not found"):
                caller.seen(other, 1, missing, write=write)


def test_a_service_that_names_a_tenant_sees_no_more_than_it() -> None:
    caller = caller_of("mesh", tenant="", named="acme")
    assert (caller.tenant, caller.reads_across, caller.writes_across, caller.is_service) == ("acme", False, False, True)
    assert caller.seen(Record("acme"), 1, missing, write=True)
    with pytest.raises(MeshError):
        caller.seen(Record("globex"), 1, missing)


def test_what_does_not_exist_is_not_found_for_anyone() -> None:
    with pytest.raises(MeshError) as caught:
        caller_of("operator").seen(None, 7, missing)
    assert (caught.value.kind, caught.value.metadata["id"]) == (ErrorKind.NOT_FOUND, "7")


def test_a_caller_without_a_tenant_owns_no_record_without_one() -> None:
    with pytest.raises(MeshError):
        caller_of("read", tenant="").seen(Record(""), 1, missing)


def test_the_callers_own_tenant_is_taken_where_none_is_named() -> None:
    assert caller_of("write").tenant_of("", PATH) == "acme"
    assert caller_of("write").tenant_of("acme", PATH) == "acme"
    with pytest.raises(MeshError) as caught:
        caller_of("write", tenant="").tenant_of("", PATH)
    assert (caught.value.kind, caught.value.reason) == (ErrorKind.FORBIDDEN, "NO_TENANT")


def test_only_who_writes_across_tenants_creates_for_another() -> None:
    with pytest.raises(MeshError) as caught:
        caller_of("admin").tenant_of("globex", PATH)
    assert (caught.value.kind, caught.value.reason) == (ErrorKind.FORBIDDEN, "FOREIGN_TENANT")
    assert caught.value.message == "origin_tenant_id names another tenant than the token"
    assert caller_of("operator").tenant_of("globex", PATH) == "globex"


def test_a_malformed_tenant_is_refused_at_its_field() -> None:
    with pytest.raises(MeshError) as caught:
        caller_of("operator").tenant_of("../etc", PATH)
    assert [(one.path, one.type) for one in caught.value.violations] == [(PATH, "tenant")]


def test_there_is_no_caller_outside_of_a_call() -> None:
    with pytest.raises(MeshError) as caught:
        Caller.of_call()
    assert caught.value.kind is ErrorKind.UNAUTHENTICATED
