"""Which models a process serves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from modelkit.card import ModelCard
from modelkit.errors import ModelError
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
    served(str(tmp_path), packaged=str(tmp_path)).check(["drawn", "packaged"])
    served("no/such-model").check(["packaged"])
    served(str(tmp_path), "no/such-extra").check(["drawn", "packaged", "other"])


@pytest.mark.parametrize("family", ["drawn", "packaged"])
def test_a_default_model_that_is_not_here_is_missed(family: str, tmp_path: Path) -> None:
    missing = served(str(tmp_path), download=False, **{family: "no/such-model"})
    missing.check({"drawn", "packaged", "other"} - {family})
    with pytest.raises(ModelError, match="not on this machine"):
        missing.check([family])


def test_one_that_may_be_downloaded_is_not_missed() -> None:
    served("no/such-model", download=True).check(["drawn"])


def test_a_folder_whose_card_is_none_is_missed_too(tmp_path: Path) -> None:
    (tmp_path / "atelier.json").write_text("[]")
    with pytest.raises(ModelError, match="must hold an object"):
        served(str(tmp_path)).check(["drawn"])
