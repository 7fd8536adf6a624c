"""Which models a process serves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from modelkit.card import ModelCard
from modelkit.family import Family
from modelkit.served import ServedModels


class FakeFamily:
    def __init__(self, *packaged: str) -> None:
        self.packaged: Sequence[ModelCard] = [ModelCard(name=name, architecture="any") for name in packaged]

    def matches(self, card: ModelCard) -> bool:
        return True


def served(*places: str, download: bool = False, **defaults: str) -> ServedModels:
    families: dict[str, Any] = {"drawn": FakeFamily(), "packaged": FakeFamily("here"), "other": FakeFamily()}
    return ServedModels(places, cast("dict[str, Family]", families), allow_download=download, defaults=defaults)


def test_default_models_that_are_here_or_come_with_a_package_are_found(tmp_path: Path) -> None:
    assert served(str(tmp_path), packaged=str(tmp_path)).missing(["drawn", "packaged"]) is None
    assert served("no/such-model").missing(["packaged"]) is None
    assert served(str(tmp_path), "no/such-extra").missing(["drawn", "packaged", "other"]) is None


@pytest.mark.parametrize("family", ["drawn", "packaged"])
def test_a_default_model_that_is_not_here_is_missed(family: str, tmp_path: Path) -> None:
    models = served(str(tmp_path), download=False, **{family: "no/such-model"})
    assert models.missing({"drawn", "packaged", "other"} - {family}) is None
    assert "not on this machine" in str(models.missing([family]))


def test_one_that_may_be_downloaded_is_not_missed() -> None:
    assert served("no/such-model", download=True).missing(["drawn"]) is None


def test_a_folder_whose_card_is_none_is_missed_too(tmp_path: Path) -> None:
    (tmp_path / "atelier.json").write_text("[]")
    assert "must hold an object" in str(served(str(tmp_path)).missing(["drawn"]))
