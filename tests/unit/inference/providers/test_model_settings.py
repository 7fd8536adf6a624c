"""Settings of AI_CORE and VERTEX: what is knowable at create is refused there."""

import pytest
from atelier.tasks.v1.providers_pb2 import AiCoreProviderConfig, ProviderConfig, VertexConfig

from meshkit.errors import MeshError
from meshkit.validation import apply_defaults, check


def checked(config: ProviderConfig) -> list[str]:
    apply_defaults(config)
    try:
        check(config)
    except MeshError as error:
        return [violation.path for violation in error.violations]
    return []


def ai_core(ai_provider: str, model: str = "m", **more: float) -> ProviderConfig:
    config = AiCoreProviderConfig(ai_provider=ai_provider, model=model)
    for name, value in more.items():
        setattr(config, name, value)
    return ProviderConfig(ai_core=config)


@pytest.mark.parametrize(
    ("config", "holds"),
    [
        (ai_core("anthropic"), True),
        (ai_core("anthropic", temperature=1.0), True),
        (ai_core("anthropic", temperature=1.01), False),
        (ai_core("openai", temperature=2.0), True),
        (ai_core("openai", "meta-llama/Llama-3.1:70b"), True),
        (ai_core("gemini", "gemini-2.5-flash"), True),
        (ai_core("gemini", "../../v1/files"), False),
        (ai_core("gemini", "m:generateContent?x="), False),
        (ai_core("nobody"), False),
        (ProviderConfig(vertex=VertexConfig(model="gemini-3-pro-image")), True),
        (ProviderConfig(vertex=VertexConfig(model="../m")), False),
        (ProviderConfig(vertex=VertexConfig(image_size="2k")), False),
        (ProviderConfig(vertex=VertexConfig(aspect_ratio="21:9", image_size="4K")), True),
    ],
)
def test_settings_that_a_provider_would_refuse_are_refused_at_create(config: ProviderConfig, holds: bool) -> None:
    assert (checked(config) == []) is holds
