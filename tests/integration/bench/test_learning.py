"""The shipped model learns a product and a style that it has never seen, and forgets nothing."""

from pathlib import Path

import pytest
import torch

from bench.learning import drawn, figures, learn
from models.garments.novel import STYLE_TRIGGER, TRIGGER, product_drawing, style_drawing


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_adapters_learn_new_things_and_other_prompts_stay_right(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        product = learn(tmp_path / "product", TRIGGER, product_drawing, 1000)
        style = learn(tmp_path / "style", STYLE_TRIGGER, style_drawing, 700)
        found = figures(drawn(product, style))
    finally:
        torch.set_num_threads(threads)
    assert found["product"]["chance"] < 0.001
    assert found["product"]["with"] < 0.5 * found["product"]["without"]
    for name, before in found["others"]["without"].items():
        assert found["others"]["with"][name] >= before - 0.03
    assert found["both"]["product's effect"]["chance"] < 0.001
    assert found["both"]["style's effect"]["chance"] < 0.001
