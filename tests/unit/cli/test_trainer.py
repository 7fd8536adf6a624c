import pytest

from atelier_cli.errors import CliError
from atelier_cli.trainer import trains


@pytest.mark.parametrize(("value", "answer"), [("", True), ("on", True), ("ON", True), ("off", False), ("0", False)])
def test_a_mesh_trains_unless_it_is_told_not_to(monkeypatch: pytest.MonkeyPatch, value: str, *, answer: bool) -> None:
    monkeypatch.setenv("ATELIER_TRAINER", value)
    assert trains() is answer


def test_an_answer_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_TRAINER", "perhaps")
    with pytest.raises(CliError, match="on or off"):
        trains()
