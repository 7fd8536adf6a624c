import json
from pathlib import Path

import pytest

from atelier_cli.errors import CliError
from atelier_cli.trainer import trained_models, trains

FLUX = "black-forest-labs/FLUX.1-dev"


@pytest.mark.parametrize(("value", "answer"), [("", True), ("on", True), ("ON", True), ("off", False), ("0", False)])
def test_a_mesh_trains_unless_it_is_told_not_to(monkeypatch: pytest.MonkeyPatch, value: str, *, answer: bool) -> None:
    monkeypatch.setenv("ATELIER_TRAINER", value)
    assert trains() is answer


def test_an_answer_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_TRAINER", "perhaps")
    with pytest.raises(CliError, match="on or off"):
        trains()


@pytest.fixture
def nothing_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the hub's cache, which is empty; no setting names a model."""
    for name in ("ATELIER_MODEL", "ATELIER_MODEL_DOWNLOAD", "ATELIER_TRAINER_MODELS", "ATELIER_TRAINED_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def model(folder: Path, **card: str) -> Path:
    folder.mkdir(parents=True)
    if card:
        (folder / "atelier.json").write_text(json.dumps(card))
    return folder


@pytest.mark.usefixtures("nothing_chosen")
def test_the_model_that_ships_is_trained_by_its_name() -> None:
    assert trained_models() == ("garments",)


def test_models_are_called_by_their_card_or_their_folder_or_their_name_on_the_hub(
    nothing_chosen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(Path("shoes"))
    model(Path("bags"), name="our bags", architecture="flux")
    model(Path("clips"), name="clips", architecture="ltx")
    (Path("broken")).mkdir()
    (Path("broken") / "atelier.json").write_text("[")
    model(nothing_chosen / "models--us--cached" / "snapshots" / "abc", name="ours")
    monkeypatch.setenv("ATELIER_MODEL", "shoes")
    monkeypatch.setenv("ATELIER_TRAINER_MODELS", "bags, clips,broken,us/cached,us/absent,/nowhere")
    assert trained_models() == ("shoes", "our bags", "broken", "us/cached", "ours")
    monkeypatch.setenv("ATELIER_MODEL_DOWNLOAD", "true")
    assert trained_models() == ("shoes", "our bags", "broken", "us/cached", "ours", "us/absent")


@pytest.mark.usefixtures("nothing_chosen")
def test_what_the_setting_says_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_TRAINED_MODELS", f"{FLUX}, garments")
    assert trained_models() == (FLUX, "garments")


@pytest.mark.usefixtures("nothing_chosen")
def test_a_name_that_a_list_cannot_hold_leaves_open_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_MODEL", str(model(Path("mine"), name="a, b")))
    assert trained_models() == ()
