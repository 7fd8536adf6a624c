"""A seed gives the same noise in every type of number, so that a picture can be repeated on another device.

Pipelines draw their noise on the processor, in the type of their networks. torch 2.11 drew other numbers in bfloat16
than in float32: a GPU's picture then had nothing in common with the processor's.
"""

import pytest
import torch


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (1, 16, 128, 128), (1, 3), (2, 16, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_seed_draws_the_same_noise_in_each_type_of_number(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    full, rounded = (
        torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=each) for each in (torch.float32, dtype)
    )
    assert torch.equal(full.to(dtype), rounded)
