from pathlib import Path

import pytest

from meshkit import revisions


def scripts(folder: Path, *chain: tuple[str, object]) -> Path:
    (folder / "versions").mkdir(exist_ok=True)
    for own, before in chain:
        text = f'"""Doc."""\nrevision: str = {own!r}\ndown_revision = {before!r}\n'
        (folder / "versions" / f"{own}.py").write_text(text)
    return folder


def test_the_head_is_what_nothing_follows(tmp_path: Path) -> None:
    assert revisions.head(scripts(tmp_path, ("b", "a"), ("a", None), ("c", "b"))) == "c"


def test_two_heads_or_none_are_left_to_alembic(tmp_path: Path) -> None:
    assert revisions.head(tmp_path) is None
    assert revisions.head(scripts(tmp_path, ("a", None), ("b", "a"), ("c", "a"))) is None


def test_scripts_are_read_and_not_run(tmp_path: Path) -> None:
    scripts(tmp_path, ("a", None))
    (tmp_path / "versions" / "b.py").write_text('revision = "b"\ndown_revision = "a"\nraise SystemExit\n')
    assert revisions.head(tmp_path) == "b"


def test_the_folder_of_a_package() -> None:
    assert (revisions.folder("services.tasks.migrations") / "versions").is_dir()
    with pytest.raises(ValueError, match="not a package"):
        revisions.folder("meshkit.errors")
