from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import ErrorKind, MeshError
from meshkit.objects import ObjectStore
from meshkit.paths import normalise_path


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("a", "a"),
        ("a/b.png", "a/b.png"),
        ("a//b/", "a/b"),
        ("./a/./b", "a/b"),
        ("a/..b/c..", "a/..b/c.."),
        ("a/...", "a/..."),
        ("ü/日本.png", "ü/日本.png"),
        ("a b/c%2e%2e", "a b/c%2e%2e"),
        ("x" * 255, "x" * 255),
        ("/".join(["x" * 255] * 4), "/".join(["x" * 255] * 4)),
    ],
)
def test_paths_have_one_form(path: Any, normal: Any) -> None:
    assert normalise_path(path) == normal


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("..", "path_traversal"),
        ("../a", "path_traversal"),
        ("a/../b", "path_traversal"),
        ("a/..", "path_traversal"),
        ("a/./../b", "path_traversal"),
        ("a/b/../../../c", "path_traversal"),
        ("/a", "path_absolute"),
        ("//a", "path_absolute"),
        ("a\\b", "path_backslash"),
        ("..\\a", "path_backslash"),
        ("a\0b", "path_control"),
        ("a\nb", "path_control"),
        ("a\x7fb", "path_control"),
        ("a\ud800b", "path_control"),
        ("", "path_empty"),
        (".", "path_empty"),
        ("./", "path_empty"),
        ("x/" * 513, "string_too_long"),
        ("x" * 256, "string_too_long"),
        ("a/" + "ü" * 128 + "/b", "string_too_long"),
        ("ü" * 513, "string_too_long"),
    ],
)
def test_paths_that_could_lead_elsewhere_are_refused(path: Any, kind: Any) -> None:
    with pytest.raises(MeshError) as caught:
        normalise_path(path)
    assert (caught.value.kind, caught.value.violations[0].type) == (ErrorKind.INVALID, kind)


@given(st.text(st.sampled_from("./\\a\0é "), max_size=20))
def test_no_path_leaves_its_folder(path: Any) -> None:
    try:
        normal = normalise_path(path)
    except MeshError:
        return
    assert normalise_path(normal) == normal
    assert not normal.startswith("/")
    assert ".." not in normal.split("/")
    assert "\0" not in normal


@pytest.mark.parametrize("tenant", ["", "..", "a/b", "../acme", "a\0"])
async def test_a_malformed_tenant_reaches_no_store(tenant: Any) -> None:
    store = ObjectStore("127.0.0.1:9", "a", "b")
    for call in (store.get, store.stat, store.delete, store.delete_prefix):
        with pytest.raises(MeshError) as caught:
            await call(tenant, "x")
        assert caught.value.kind is ErrorKind.FORBIDDEN
    await store.close()
