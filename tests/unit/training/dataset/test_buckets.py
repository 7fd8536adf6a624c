import pytest

from services.training.trainer.dataset.buckets import bucket_for, bucket_sizes, crop_to, enlargement


@pytest.mark.parametrize(
    ("resolution", "multiple", "most"), [(64, 16, 64), (64, 16, 128), (512, 16, 1024), (1024, 16, 2048)]
)
def test_buckets_are_multiples_of_the_patch_and_no_larger_than_the_square(
    resolution: int, multiple: int, most: int
) -> None:
    sizes = bucket_sizes(resolution, multiple, most)
    assert (resolution, resolution) in sizes
    for width, height in sizes:
        assert width % multiple == height % multiple == 0
        assert width * height <= resolution**2
        assert max(width, height) <= most
        assert 0.5 <= width / height <= 2
    assert {(height, width) for width, height in sizes} == set(sizes)


def test_a_square_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        bucket_sizes(100, 16, 200)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((1000, 1000), (1024, 1024)),
        ((3000, 2000), (1248, 832)),
        ((2000, 3000), (832, 1248)),
        ((5000, 1000), (1440, 720)),
    ],
)
def test_a_picture_gets_the_bucket_of_its_shape(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    found = bucket_for(size, bucket_sizes(1024, 16, 2048))
    assert found == pytest.approx(bucket, abs=32)


def test_most_of_a_picture_is_kept() -> None:
    sizes = bucket_sizes(512, 16, 1024)
    for size in [(640, 480), (480, 640), (1920, 1080), (1000, 1001), (512, 700)]:
        left, top, right, bottom = crop_to(size, bucket_for(size, sizes))
        assert 0 <= left <= right <= size[0]
        assert 0 <= top <= bottom <= size[1]
        assert (right - left) * (bottom - top) >= 0.93 * size[0] * size[1]


def test_a_crop_has_the_shape_of_its_bucket_and_is_centred() -> None:
    assert crop_to((200, 100), (64, 64)) == (50, 0, 150, 100)
    assert crop_to((100, 200), (64, 64)) == (0, 50, 100, 150)
    assert enlargement((50, 0, 150, 100), (64, 64)) == pytest.approx(0.64)
    assert enlargement((0, 0, 16, 16), (64, 64)) == 4
