import pytest

from services.training.trainer.dataset.domain import DatasetRefused, RejectedPicture, shown_source, source_name


@pytest.mark.parametrize(
    ("source", "name", "shown"),
    [
        ("uploads/summer/front view.jpg", "front view.jpg", "uploads/summer/front view.jpg"),
        ("https://u:p@cdn.example/a/b%20c.png?sig=secret#x", "b c.png", "https://cdn.example/a/b%20c.png"),
        ("https://cdn.example/", "source_images[3]", "https://cdn.example/"),
        ("https://cdn.example/%3Cscript%3E.png", "_script_.png", "https://cdn.example/%3Cscript%3E.png"),
        ("data:image/png;base64,AAAA", "source_images[3]", ""),
        ("iVBORw0KGgo/AAAA", "source_images[3]", ""),
        ("A.B" * 1000, "source_images[3]", ""),
    ],
)
def test_a_picture_is_called_by_its_file_and_tells_no_secret(source: str, name: str, shown: str) -> None:
    assert source_name(source, 3) == name
    assert shown_source(source) == shown


def test_a_refusal_names_every_picture_and_stays_short() -> None:
    few = DatasetRefused(
        [RejectedPicture(0, "a.png", "", "is damaged"), RejectedPicture(1, "b.gif", "", "is too small")]
    )
    assert few.message == "None of the pictures can be trained on: a.png is damaged; b.gif is too small."
    many = DatasetRefused([RejectedPicture(n, f"{n}.png", "", "is damaged") for n in range(1000)])
    assert len(many.message) <= 4000
    assert "1000 pictures in all" in many.message
