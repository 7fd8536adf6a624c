import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from modelkit.errors import ModelError
from modelkit.flux_layers import LayerNames, modules_of
from services.training.library.bases import FLUX_DEV, SHIPPED, BaseModel, known_bases
from services.training.library.judging import LoraFacts, judge
from tests.loras.layouts import LAYOUTS, write
from tests.unit.modelkit.test_flux_layers import SMALL

SMALL_BASE = BaseModel("small", LayerNames(modules_of(SMALL)))
LAYER = "transformer.transformer_blocks.0.attn.to_q"
PAIR = {f"{LAYER}.lora_A.weight": (4, 32), f"{LAYER}.lora_B.weight": (32, 4)}


@pytest.fixture(scope="session")
def bases() -> tuple[BaseModel, ...]:
    return (SMALL_BASE, *known_bases([SHIPPED, FLUX_DEV]))


def judged(tmp_path: Path, content: bytes, bases: tuple[BaseModel, ...] = (SMALL_BASE,)) -> LoraFacts:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(content)
    return judge(path, bases)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_each_tool_is_taken_and_described(tmp_path: Path, layout: str) -> None:
    found = judged(tmp_path, write(LAYOUTS[layout](SMALL)))
    assert (found.layout, found.base_model, found.rank, found.unmatched) == (layout, "small", 4, ())
    assert found.layers > 0


def test_a_file_belongs_to_the_model_whose_shapes_it_has(tmp_path: Path, bases: tuple[BaseModel, ...]) -> None:
    block = "transformer.single_transformer_blocks.37.attn.to_q"
    big = {f"{block}.lora_A.weight": (1, 3072), f"{block}.lora_B.weight": (3072, 1)}
    assert judged(tmp_path, write(big), bases).base_model == FLUX_DEV
    block = "transformer.transformer_blocks.1.attn.to_q"
    shipped = {f"{block}.lora_A.weight": (1, 192), f"{block}.lora_B.weight": (192, 1)}
    assert judged(tmp_path, write(shipped), bases).base_model == "garments"


def test_what_a_file_says_of_its_training_is_kept(tmp_path: Path) -> None:
    notes = {
        "modelspec.trigger_phrase": "zorblax\x00",
        "modelspec.thumbnail": "data:image/png;base64,AAAA",
        "ss_network_dim": "4",
        "ss_tag_frequency": "x" * 5000,
    }
    found = judged(tmp_path, write(PAIR, notes=notes))
    assert found.trigger_word == "zorblax"
    assert found.thumbnail == notes["modelspec.thumbnail"]
    assert found.notes == {"modelspec.trigger_phrase": "zorblax", "ss_network_dim": "4"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("half", ["A", "B"])
def test_values_that_are_not_numbers_are_refused(tmp_path: Path, value: float, half: str) -> None:
    with pytest.raises(ModelError, match="not numbers"):
        judged(tmp_path, write(PAIR, values={f"{LAYER}.lora_{half}.weight": value}))


# (type, bits of a value that is none, bits of the largest value), both by the formats' definitions
@pytest.mark.parametrize(
    ("dtype", "bad", "good"),
    [
        ("F16", [b"\x00\x7c", b"\x01\xfe"], b"\xff\x7b"),
        ("BF16", [b"\x80\x7f", b"\xc0\xff"], b"\x7f\x7f"),
        ("F32", [b"\x00\x00\x80\x7f", b"\x01\x00\xc0\xff"], b"\xff\xff\x7f\x7f"),
        ("F64", [b"\x00" * 6 + b"\xf0\x7f", b"\x00" * 6 + b"\xf8\xff"], b"\xff" * 6 + b"\xef\x7f"),
        ("F8_E4M3", [b"\x7f", b"\xff"], b"\x7e"),
        ("F8_E5M2", [b"\x7c", b"\xff"], b"\x7b"),
    ],
)
def test_each_type_of_weights_is_looked_through(tmp_path: Path, dtype: str, bad: list[bytes], good: bytes) -> None:
    width = len(good)

    def file(value: bytes) -> bytes:
        sizes = dict.fromkeys(PAIR, width * 128)
        header, at = {}, 0
        for name, shape in PAIR.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + sizes[name]]}
            at += sizes[name]
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + good * 255 + value

    assert judged(tmp_path, file(good)).layers == 1
    for value in bad:
        with pytest.raises(ModelError, match="not numbers"):
            judged(tmp_path, file(value))


def test_a_file_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="changes nothing"):
        judged(tmp_path, write(PAIR, values={f"{LAYER}.lora_B.weight": 0.0}))


@pytest.mark.parametrize(
    ("name", "kind"), [("dora_scale", "DoRA"), ("lokr_w1", "LoKr"), ("hada_w1_a", "LoHa"), ("query_norm.scale", "BFL")]
)
def test_another_kind_of_adapter_is_refused_by_its_name(
    tmp_path: Path, bases: tuple[BaseModel, ...], name: str, kind: str
) -> None:
    with pytest.raises(ModelError, match=kind):
        judged(tmp_path, write({**PAIR, f"{LAYER}.{name}": (1, 32)}), bases)


def test_a_refusal_that_its_owner_can_act_upon_goes_before_another_models_shapes(
    tmp_path: Path, bases: tuple[BaseModel, ...]
) -> None:
    block = "transformer.single_transformer_blocks.37.attn.to_q"
    with pytest.raises(ModelError, match="out of rank 2"):
        judged(tmp_path, write({f"{block}.lora_A.weight": (1, 3072), f"{block}.lora_B.weight": (3072, 2)}), bases)


def test_a_file_for_no_known_model_is_refused(tmp_path: Path, bases: tuple[BaseModel, ...]) -> None:
    with pytest.raises(ModelError, match="made for another model"):
        judged(tmp_path, write({"unet.a.lora_down.weight": (4, 320), "unet.a.lora_up.weight": (320, 4)}), bases)


def test_a_model_that_is_none_is_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layers are not known"):
        known_bases(["someone/else"])
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text("{}")
    with pytest.raises(ValueError, match="not readable"):
        known_bases([str(tmp_path)])


def _mutated(rng: random.Random, header: dict[str, Any], text: bytes, data: bytes) -> bytes:
    """Return a file with one thing wrong in it, or a few."""
    kind = rng.randrange(8)
    if kind == 0:
        broken = bytearray(text)
        for _ in range(rng.randint(1, 8)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        return struct.pack("<Q", len(broken)) + bytes(broken) + data
    if kind == 1:
        length = rng.choice([0, 1, 2, len(text) - 1, len(text) + 1, 1 << 24, 1 << 31, 1 << 63, (1 << 64) - 1])
        return struct.pack("<Q", length) + text + data
    if kind == 2:
        return (struct.pack("<Q", len(text)) + text + data)[: rng.randrange(len(text) + len(data) + 8)]
    if kind == 3:
        nested = rng.choice([b"[", b'{"a":', b"[[{}", b'"\\u']) * rng.choice([1, 100, 100_000])
        return struct.pack("<Q", len(nested)) + nested + data
    name = rng.choice(list(header))
    odd: list[Any] = [
        None,
        -1,
        1 << 62,
        1 << 70,
        1.5,
        "",
        "\x00",
        "a" * 9000,
        [],
        [[]],
        {},
        True,
        [0, -8],
        [1 << 60, 4],
        "F128",
    ]
    if kind == 4:
        header[name] = rng.choice(odd)
    elif kind in {5, 6}:
        header[name] = {**header[name], rng.choice(["dtype", "shape", "data_offsets", "more"]): rng.choice(odd)}
    else:
        header = {**header, rng.choice(["__metadata__", "", "\ud800", "../../x", "\x00", "a" * 600]): rng.choice(odd)}
    made = json.dumps(header).encode()
    return struct.pack("<Q", len(made)) + made + data


def _refusal(path: Path) -> str:
    try:
        judge(path, (SMALL_BASE,))
    except ModelError as error:
        return error.message
    return ""


def _fuzz(tmp_path: Path, count: int) -> None:
    rng, refused = random.Random(13), 0
    path = tmp_path / "lora.safetensors"
    whole = write(PAIR)
    length = struct.unpack("<Q", whole[:8])[0]
    text, data = whole[8 : 8 + length], whole[8 + length :]
    for _ in range(count):
        path.write_bytes(_mutated(rng, json.loads(text), text, data))
        message = _refusal(path)
        refused += bool(message)
        assert str(tmp_path) not in message
        assert message.isprintable()
        assert len(message) < 300
    # Some stay right, as an odd value in a note that nobody reads.
    assert refused > count * 0.8


def test_200_wrong_headers_crash_nothing(tmp_path: Path) -> None:
    _fuzz(tmp_path, 200)


@pytest.mark.long
def test_2000_wrong_headers_crash_nothing(tmp_path: Path) -> None:
    _fuzz(tmp_path, 2000)
