"""The folder of uploads."""

import pytest

from meshkit.staging import STAGING_FOLDER, is_staged


@pytest.mark.parametrize("path", [f"{STAGING_FOLDER}/a", f"{STAGING_FOLDER}/a/b.png"])
def test_what_lies_in_the_folder_is_staged(path: str) -> None:
    assert is_staged(path)


@pytest.mark.parametrize("path", ["", STAGING_FOLDER, f"{STAGING_FOLDER}-other/a", f"images/{STAGING_FOLDER}/a"])
def test_what_lies_elsewhere_is_not(path: str) -> None:
    assert not is_staged(path)
