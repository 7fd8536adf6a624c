from pathlib import Path

import pytest
from pydantic import ValidationError

from meshkit import cutouts
from services.inference.config import InferenceSettings
from services.tasks.config import TasksSettings


def test_names_are_those_of_the_contract() -> None:
    assert set(cutouts.SHIPPED) < set(cutouts.documented())
    assert cutouts.served(["silueta"]) == ("u2net", "u2netp", "silueta")


def test_files_are_named_in_one_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    monkeypatch.setenv("ATELIER_CUTOUT_MODELS", f"silueta={tmp_path / 'a.onnx'}, isnet-anime = {tmp_path / 'a.onnx'}")
    files = {"silueta": str(tmp_path / "a.onnx"), "isnet-anime": str(tmp_path / "a.onnx")}
    assert InferenceSettings().cutout_models == files
    monkeypatch.setenv("ATELIER_DATABASE_URL", "postgresql://localhost/x")
    assert TasksSettings().cutout_models == files


@pytest.mark.parametrize("value", ["sam=/a.onnx", "u2net=/a.onnx", "other=/a.onnx", "silueta", "silueta="])
def test_what_is_no_file_of_a_known_network_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ATELIER_CUTOUT_MODELS", value)
    with pytest.raises(ValidationError, match="is not NAME=FILE with a name of u2net_human_seg, u2net_cloth_seg"):
        InferenceSettings()


def test_a_worker_does_not_start_without_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATELIER_CUTOUT_MODELS", f"silueta={tmp_path / 'gone.onnx'}")
    with pytest.raises(ValidationError, match="there is no file of silueta"):
        InferenceSettings()
