"""Settings of providers as callers give them: what they may not say, there and in the task's `config`.

The name that a provider gave a request is written by the mesh alone: whoever could name another tenant's request would
be given its pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from atelier.tasks.v1 import providers_pb2
from google.protobuf.struct_pb2 import Struct

from meshkit import fashn
from meshkit.catalog import provider_of_config

# By the field of a provider's settings in ProviderConfig: refuses members of a task's `config` that are meant for its
# models, given the `config`, its path for the error, and the task's Create message if it is known.
STEERING: Mapping[str, Callable[[Struct, str, Any], None]] = {"fashn_standard": fashn.check_inputs}

NAMED_REQUEST = "is written by the mesh once the provider has the request; leave it out"


def named_request(config: providers_pb2.ProviderConfig) -> str | None:
    """Return the path of a member of these settings that names a request at the provider; None where none is set."""
    provider = provider_of_config(config)
    if provider is None or provider.service_task_id is None:
        return None
    settings: Any = getattr(config, provider.config)
    return f"{provider.config}.{provider.service_task_id}" if settings.HasField(provider.service_task_id) else None
