from itertools import islice

import pytest

from meshkit.errors import MeshError
from services.training.library.names import exact_name, extension_of, folder_of, safe_name, versions


@pytest.mark.parametrize(
    ("sent", "made"),
    [
        ("ink.safetensors", "ink"),
        ("My LoRA (1).SafeTensors", "My_LoRA_1"),
        ("../../etc/passwd.pt", "passwd"),
        ("C:\\loras\\ada.ckpt", "ada"),
        ("ink.v2.bin", "ink_v2"),
        ("größe.pth", "gr_e"),
        ("名前.safetensors", "lora"),
        (".safetensors", "lora"),
        ("---.bin", "lora"),
        ("a" * 500 + ".bin", "a" * 120),
        ("a\x00b\n.bin", "a_b"),
    ],
)
def test_a_safe_name_is_plain_whatever_was_sent(sent: str, made: str) -> None:
    assert safe_name(sent) == f"{made}.safetensors"


@pytest.mark.parametrize("name", ["Ada (new)", "größe", "a.b", "..a"])
def test_an_exact_name_stays_and_ends_in_what_the_file_becomes(name: str) -> None:
    assert exact_name(f"{name}.safetensors") == f"{name}.safetensors"
    assert exact_name(f"{name}.ckpt") == f"{name}.safetensors"


@pytest.mark.parametrize("name", ["", ".", "..", " ", "a/b", "../a", "a\\b", "a\x00b", "%2e%2e", "a" * 250])
def test_an_exact_name_that_cannot_be_a_files_is_refused(name: str) -> None:
    with pytest.raises(MeshError) as caught:
        exact_name(f"{name}.safetensors")
    assert caught.value.violations[0].path == "file"


@pytest.mark.parametrize("name", ["a.zip", "a", "safetensors", "a.safetensors.exe", ""])
def test_other_extensions_are_refused(name: str) -> None:
    with pytest.raises(MeshError):
        extension_of(name)


def test_types_are_folders_and_faces_are_shared_ones() -> None:
    assert folder_of(None, shared=False) == folder_of("", shared=True) == "no_type_provided"
    assert folder_of("faces", shared=True) == "faces"
    for wrong in ("faces", "Product", "..", "loras"):
        with pytest.raises(MeshError):
            folder_of(wrong, shared=False)


def test_versions_stand_before_the_extension() -> None:
    names = [f"{name}.safetensors" for name in ("a", "a_v2", "a_v3")]
    assert list(islice(versions("a.safetensors"), 3)) == names
