from typing import Any

import orjson
from atelier.tasks.v1 import task_pb2

from meshkit.media_urls import MEDIA_ROUTE, MediaLinks, MediaSigner
from services.tasks.domain import TaskRecord, TaskStatus
from services.tasks.media import media_of, shower, with_media
from tests.unit.tasks.test_convert import record

Task: Any = task_pb2.Task
TaskResult: Any = task_pb2.TaskResult
SIGNER = MediaSigner(b"s" * 32, ttl_seconds=60)
LINKS = MediaLinks("https://media.example/", SIGNER)


def completed(detail: str, **result: Any) -> TaskRecord:
    return record(
        status=TaskStatus.COMPLETED,
        body=Task(**{detail: {}}).SerializeToString(),
        result=TaskResult(**{detail: result}).SerializeToString(),
    )


def opened(url: str) -> str:
    base, _, token = url.rpartition("/")
    assert base == f"https://media.example{MEDIA_ROUTE}"
    media = SIGNER.open(token)
    assert media.tenant == "acme"
    return media.path


def test_a_result_has_an_address_that_opens_it() -> None:
    for detail, member, path in (
        ("generation", "result_image_path", "generations/x/1/image.png"),
        ("video_generation", "result_video_path", "videos/x/1/clip.mp4"),
    ):
        task = shower(LINKS)(completed(detail, **{member: path}))
        assert opened(task.media_url) == path
        assert list(task.media_urls) == []


def test_of_several_results_each_has_its_address_in_its_place() -> None:
    paths = ["backgrounds/x/1/0.png", "", "backgrounds/x/1/2.png"]
    task = shower(LINKS)(completed("background_remove", result_image_paths=paths))
    assert [opened(url) if url else "" for url in task.media_urls] == paths
    assert not task.HasField("media_url")


def test_what_has_no_file_has_no_address() -> None:
    for row in (
        record(),
        completed("llm_interaction", result_text="Paris"),
        completed("generation", result_image_path="generations/x/1/image.png")._replace(is_deleted=True),
    ):
        task = shower(LINKS)(row)
        assert not task.HasField("media_url")
        assert list(task.media_urls) == []
        assert media_of(row) == {}


def test_a_mesh_that_is_not_told_its_address_gives_none() -> None:
    row = completed("generation", result_image_path="generations/x/1/image.png")
    task = shower(None)(row)
    assert task.generation.result_image_path
    assert not task.HasField("media_url")
    assert with_media(b'{"media_url":null}', "acme", media_of(row), None) == b'{"media_url":null}'


def test_an_event_is_given_addresses_when_it_is_sent() -> None:
    body = b'{"status":"COMPLETED","media_url":null,"media_urls":null}'
    one = completed("refine", result_image_path="refines/x/1/image.png")
    told = orjson.loads(with_media(body, "acme", media_of(one), LINKS))
    assert list(told) == ["status", "media_url", "media_urls"]
    assert (opened(told["media_url"]), told["media_urls"]) == ("refines/x/1/image.png", None)
    several = completed("background_remove", result_image_paths=["a.png", ""])
    told = orjson.loads(with_media(body, "acme", media_of(several), LINKS))
    assert (told["media_url"], opened(told["media_urls"][0]), told["media_urls"][1]) == (None, "a.png", "")
    assert with_media(body, "acme", {}, LINKS) == body
