import os
from pathlib import Path

from meshkit.worker.folders import AttemptFolders


def test_nothing_is_left_of_an_attempt_whatever_it_wrote(tmp_path: Path) -> None:
    folders = AttemptFolders.open(tmp_path)
    folder = folders.make(folders.name())
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")
    folders.remove(str(folder))
    assert not folder.exists()
    unmade = folders.name()
    assert unmade != str(folder)
    folders.remove(unmade)
    folders.make(folders.name())
    folders.close()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_another_uses_is_not(tmp_path: Path) -> None:
    dead = tmp_path / "77-dead"
    (dead / "1").mkdir(parents=True)
    dead.with_suffix(".lock").touch()
    living = AttemptFolders.open(tmp_path)
    kept = living.make(living.name())
    other = AttemptFolders.open(tmp_path)
    assert not dead.exists()
    assert kept.exists()
    assert len({path.name.split("-")[0] for path in tmp_path.glob("*.lock")} | {str(os.getpid())}) == 1
    other.close()
    living.close()
