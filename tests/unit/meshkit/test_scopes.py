"""Scopes by the contract's numbers."""

from atelier.options.v1 import options_pb2

from meshkit import auth
from meshkit.scopes import SCOPE_NAMES, scope_name


def test_every_scope_of_the_contracts_has_its_name() -> None:
    named = {number: name.removeprefix("SCOPE_").lower() for name, number in options_pb2.Scope.items()}
    wanted = {number: "" if name == "caller" else name for number, name in named.items()}
    # What was forgotten is not public.
    assert wanted | {0: auth.MESH} == SCOPE_NAMES
    assert set(SCOPE_NAMES.values()) - {""} == auth.SCOPES


def test_a_scope_of_a_later_contract_is_for_services_alone() -> None:
    assert scope_name(max(SCOPE_NAMES) + 1) == auth.MESH
    assert scope_name(options_pb2.SCOPE_CALLER) == ""
