"""What opens accounts at providers: the settings of workers that the contract names for it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from atelier.options.v1 import options_pb2
from atelier.tasks.v1.enums_pb2 import ProviderType

from meshkit.catalog import PROVIDERS


def _declared() -> dict[str, tuple[str, ...]]:
    values = ProviderType.DESCRIPTOR.values_by_number
    return {
        name: tuple(values[spec.number].GetOptions().Extensions[options_pb2.provider].credentials)
        for name, spec in PROVIDERS.items()
    }


CREDENTIALS: Mapping[str, tuple[str, ...]] = MappingProxyType(_declared())
"""By provider, the settings of a worker of which any will do; none where there is no account."""
