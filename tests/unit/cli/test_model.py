"""A model that is not on this machine is told before a task needs it."""

from pathlib import Path

import pytest

from atelier_cli.commands.doctor import _model
from atelier_cli.model import SHIPPED, ChosenModel, absolute

NAME = "black-forest-labs/FLUX.1-dev"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the hub's cache, which is empty."""
    for name in ("ATELIER_MODEL", "ATELIER_MODEL_DOWNLOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def weights(folder: Path) -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "part.safetensors").touch()
    return folder


def test_the_model_that_ships_is_there_from_any_folder() -> None:
    assert ChosenModel.of_environment() == ChosenModel()
    assert ChosenModel().fault() is None
    assert ChosenModel(SHIPPED).fault() is None
    assert "the small one that ships" in _model().text


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/nowhere/flux", "ATELIER_MODEL is /nowhere/flux, and there is no such folder."),
        ("./flux", "no such folder"),
        ("n" * 300, "no such folder"),
        (NAME, "neither a folder here nor in the model hub's cache"),
        ("empty", "holds no model"),
    ],
)
def test_a_model_that_is_not_there_is_told(
    tmp_path: Path, place: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("ATELIER_MODEL", place)
    fault = ChosenModel.of_environment().fault()
    assert fault is not None
    assert said in fault
    finding = _model()
    assert (finding.fine, finding.text) == (False, fault)


def test_a_name_that_may_be_fetched_or_is_in_the_cache_is_fine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_MODEL", NAME)
    monkeypatch.setenv("ATELIER_MODEL_DOWNLOAD", "true")
    assert _model().text == f"{NAME}, fetched at the first task"
    monkeypatch.delenv("ATELIER_MODEL_DOWNLOAD")
    folder = weights(cache / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / "abc")
    assert _model().text == str(folder)


def test_a_folder_is_meant_from_where_the_user_stands(tmp_path: Path) -> None:
    weights(tmp_path / "mine")
    assert absolute("mine") == str(tmp_path / "mine")
    assert absolute(NAME) == NAME
    assert ChosenModel("mine").fault() is None
