import pytest

from modelkit.errors import ModelError
from modelkit.flux_layers import LayerNames, modules_of
from modelkit.lora_layers import Shapes, read_layers
from tests.loras.layouts import LAYOUTS, kohya
from tests.unit.modelkit.test_flux_layers import SMALL

NAMES = LayerNames(modules_of(SMALL))
LAYER = "transformer.transformer_blocks.0.attn.to_q"
GOOD: Shapes = {f"{LAYER}.lora_A.weight": (4, 32), f"{LAYER}.lora_B.weight": (32, 4)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_each_tool_is_known_by_its_names(layout: str) -> None:
    reading = read_layers(LAYOUTS[layout](SMALL), NAMES, is_zero=lambda _: False)
    assert (reading.layout, reading.rank, reading.unmatched) == (layout, 4, ())
    halves = [name for name in LAYOUTS[layout](SMALL) if not name.endswith(".alpha")]
    assert len(reading.layers) * 2 == len(halves)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("dora_scale", (1, 32), "is a DoRA"),
        ("lora_magnitude_vector.weight", (32,), "is a DoRA"),
        ("lokr_w1", (4, 4), "is a LoKr"),
        ("hada_w1_a", (4, 4), "is a LoHa"),
        ("norm.query_norm.scale", (16,), "is a control LoRA of BFL"),
        ("bundle_emb.weight", (4, 4), "embeddings of its own"),
        ("mystery", (4,), "more than low-rank layers"),
    ],
)
def test_another_kind_of_adapter_is_refused_by_its_name(name: str, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        read_layers({**GOOD, f"{LAYER}.lora_B.bias": (32,), f"{LAYER}.{name}": shape}, NAMES, is_zero=lambda _: False)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({f"{LAYER}.lora_A.weight": (4, 32)}, "lacks half of its layer"),
        ({f"{LAYER}.lora_B.weight": (32, 4)}, "lacks half of its layer"),
        ({**GOOD, f"{LAYER}.lora_B.weight": (32, 8)}, "into rank 4 and out of rank 8"),
        ({**GOOD, f"{LAYER}.lora_A.weight": (4, 48)}, "has 48 inputs, this model's has 32"),
        ({**GOOD, f"{LAYER}.lora_B.weight": (48, 4)}, "has 48 outputs, this model's has 32"),
        ({**GOOD, f"{LAYER}.lora_A.weight": (4, 32, 1, 1)}, "has 0 inputs"),
        ({**GOOD, f"{LAYER}.alpha": (4,)}, "scale that is no number"),
        ({**GOOD, "transformer.x_embedder.alpha": ()}, "scales a layer that it does not hold"),
        ({"unet.a.lora_A.weight": (4, 8), "unet.a.lora_B.weight": (8, 4)}, "this one has no layer unet.a"),
        ({f"{LAYER}.lora_A.weight": (0, 32), f"{LAYER}.lora_B.weight": (32, 0)}, "into rank 0"),
        ({**GOOD, f"{LAYER}.lora_down.weight": (4, 32)}, "a part of a layer twice"),
        ({**GOOD, **{name: size for name, size in kohya(SMALL).items() if "0_img" in name}}, "names a layer twice"),
        ({f"lora_te2_a.lora_{half}.weight": (4, 4) for half in ("down", "up")}, "text encoder that is not adapted"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(shapes: Shapes, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        read_layers(shapes, NAMES, is_zero=lambda _: False)


def test_layers_that_the_model_lacks_are_reported_beside_those_that_it_has() -> None:
    beyond = "transformer.transformer_blocks.7.attn.to_q"
    reading = read_layers(
        {**GOOD, f"{beyond}.lora_A.weight": (4, 32), f"{beyond}.lora_B.weight": (32, 4)},
        NAMES,
        is_zero=lambda _: False,
    )
    assert reading.unmatched == (beyond,)
    assert [layer.name for layer in reading.layers] == [LAYER]


def test_zeros_that_a_tool_wrote_beside_its_layers_are_left_out() -> None:
    reading = read_layers({**GOOD, f"{LAYER}.diff_b": (32,)}, NAMES, is_zero=lambda key: "diff_b" in key)
    assert len(reading.layers) == 1
