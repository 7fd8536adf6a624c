import pytest

from meshkit.errors import ErrorKind, MeshError
from meshkit.quotas import TenantRates, TenantShare


def test_a_tenant_holds_its_share_and_another_its_own() -> None:
    share = TenantShare("streams", 2, "tenant_max_streams")
    share.enter("a")
    share.enter("a")
    with pytest.raises(MeshError, match=r"limit of 2 streams.*ATELIER_TENANT_MAX_STREAMS") as full:
        share.enter("a")
    assert (full.value.kind, full.value.metadata["retry_after"]) == (ErrorKind.EXHAUSTED, "2")
    share.enter("b")
    share.leave("a")
    share.enter("a")


def test_a_tenant_makes_so_many_requests_a_second_and_twice_as_many_after_a_rest() -> None:
    now = 100.0
    rates = TenantRates(10, "tenant_requests_per_second", lambda: now)

    def taken(tenant: str) -> int:
        count = 0
        try:
            while True:
                rates.take(tenant)
                count += 1
        except MeshError:
            return count

    assert taken("a") == 20
    assert taken("b") == 20, "another tenant has its own"
    now += 1.0
    assert taken("a") in {9, 10}
    now += 60.0
    assert taken("a") == 20
