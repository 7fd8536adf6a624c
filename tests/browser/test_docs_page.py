"""`/docs` in a browser: everything is there, and requests can be tried."""

import io
import json
from urllib.parse import urlsplit

import httpx
import pytest
from atelier.tasks.v1 import enums_pb2
from PIL import Image
from playwright.async_api import Locator, Page, Request, Route, expect

from tests.integration.gateway import conftest as fakes
from tests.integration.gateway.conftest import Mesh

SEED = (1 << 62) + 1


def picture() -> bytes:
    """Return a PNG of 16 pixels."""
    held = io.BytesIO()
    Image.new("RGB", (16, 16), "blue").save(held, "PNG")
    return held.getvalue()


async def opened(page: Page, mesh: Mesh, operation: str) -> Locator:
    """Go to one operation of the page, opened."""
    await page.goto(f"{mesh.url}/docs#op-{operation}")
    await page.fill("#token", mesh.token())
    return page.locator(f"#op-{operation}")


async def answered(operation: Locator, outcome: str) -> str:
    """Send, wait for the outcome and return what the answer shows."""
    await operation.get_by_role("button", name="Send").click()
    await expect(operation.locator(".outcome")).to_contain_text(outcome)
    return await operation.locator(".try pre").inner_text()


async def test_the_page_shows_every_operation_and_asks_nobody_else(page: Page, mesh: Mesh) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(f"{mesh.url}/docs")
    async with httpx.AsyncClient() as client:
        document = (await client.get(f"{mesh.url}/openapi.json")).json()
    named = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    await expect(page.locator("details.op")).to_have_count(len(named))
    for name in named:
        await expect(page.locator(f"#op-{name}")).to_have_count(1)
    await expect(page.locator("details.model")).to_have_count(len(document["components"]["schemas"]))
    assert {urlsplit(one).netloc for one in asked} == {urlsplit(mesh.url).netloc}


async def test_tasks_come_first(page: Page, mesh: Mesh) -> None:
    await page.goto(f"{mesh.url}/docs")
    await expect(page.locator("details.op").first).to_have_attribute("id", "op-list_tasks")


async def test_a_task_is_created_from_the_page(page: Page, mesh: Mesh) -> None:
    operation = await opened(page, mesh, "create_task")
    await expect(page.locator("#token-state")).to_have_text("acme")
    # What the page proposes is a request that holds.
    shown = json.loads(await answered(operation, "200 OK"))
    assert mesh.tasks.requests[-1].task.generation.prompt == "a red dress"
    assert shown["id"] in mesh.tasks.tasks


async def test_a_number_of_64_bits_is_shown_as_it_is(page: Page, mesh: Mesh) -> None:
    created = await mesh.client().post(
        "/api/v1/tasks/", json={"task_type": "GENERATION", "prompt": 'a "b" {c}, [d]: é', "origin_instance": "x"}
    )
    ident = created.json()["id"]
    mesh.tasks.tasks[ident].generation.seed = SEED
    operation = await opened(page, mesh, "get_task")
    await operation.get_by_label("task_id").fill(ident)
    shown = await answered(operation, "200 OK")
    assert f'"seed": {SEED},' in shown
    assert json.loads(shown) == (await mesh.client().get(f"/api/v1/tasks/{ident}")).json()


async def test_a_task_is_watched_to_its_end(page: Page, mesh: Mesh) -> None:
    created = await mesh.client().post(
        "/api/v1/tasks/", json={"task_type": "GENERATION", "prompt": "x", "origin_instance": "x"}
    )
    operation = await opened(page, mesh, "watch_task")
    await operation.get_by_label("task_id").fill(created.json()["id"])
    await operation.get_by_role("button", name="Send").click()
    log = operation.locator(".try pre")
    await expect(log).to_contain_text('"final": true')
    assert (await log.inner_text()).count('"step": ') == 3
    await expect(operation.get_by_alt_text("Preview")).to_be_visible()
    await expect(operation.get_by_role("button", name="Stop")).to_be_hidden()


async def test_the_result_of_a_followed_task_is_shown_in_place_of_its_preview(page: Page, mesh: Mesh) -> None:
    operation = await opened(page, mesh, "create_task")
    ident = json.loads(await answered(operation, "200 OK"))["id"]
    asked: list[Request] = []

    async def stored(route: Route) -> None:
        asked.append(route.request)
        await route.fulfill(body=picture(), content_type="image/png")

    await page.route("**/api/v1/storage/images/**", stored)
    task = mesh.tasks.tasks[ident]
    task.status = enums_pb2.TASK_STATUS_COMPLETED
    task.generation.result_image_path = "made/a b.png"
    await operation.get_by_role("button", name="Follow it to its result").click()
    result = operation.get_by_alt_text("The result")
    await expect(result).to_be_visible()
    assert await result.evaluate("(image) => image.naturalWidth") == 16
    await expect(operation.get_by_alt_text("Preview")).to_have_count(0)
    assert [urlsplit(one.url).path for one in asked] == ["/api/v1/storage/images/made/a%20b.png"]
    assert asked[0].headers["authorization"].startswith("Bearer ")


async def test_a_preview_that_is_no_picture_is_not_shown(
    page: Page, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fakes, "PREVIEW", b"\xff\xd8half")
    operation = await opened(page, mesh, "create_task")
    await answered(operation, "200 OK")
    await operation.get_by_role("button", name="Follow it to its result").click()
    await expect(operation.locator(".try pre")).to_contain_text('"final": true')
    await expect(operation.get_by_alt_text("Preview")).to_be_hidden()


async def test_the_page_says_what_is_served_and_where_a_token_comes_from(page: Page, mesh: Mesh) -> None:
    await page.goto(f"{mesh.url}/docs")
    await expect(page.locator(".lead")).to_contain_text("atelier token prints one")
    await expect(page.locator("#served")).to_contain_text("With a token")
    operation = await opened(page, mesh, "create_task")
    await expect(page.locator("#served")).to_have_text("This installation serves GENERATION, IMAGE_ADJUSTER.")
    await expect(operation.locator(".chip.off").first).to_be_visible()
    off = await operation.locator(".chip.off").all_inner_texts()
    assert "CreateRefineTask" in off
    assert not any("Generation" in name and "Video" not in name for name in off)
    # What is tried stands before the tables.
    kinds = await operation.locator(".body > *").evaluate_all("(all) => all.map((one) => one.className || one.tagName)")
    assert kinds.index("try") < kinds.index("H3")


async def test_a_refusal_is_shown_with_its_reason(page: Page, mesh: Mesh) -> None:
    operation = await opened(page, mesh, "create_task")
    await operation.get_by_label("Request body").fill('{"task_type": "GENERATION", "width": "wide"}')
    assert '"width"' in await answered(operation, "422")
    await page.fill("#token", "")
    assert "bearer token" in await answered(operation, "401")


async def test_nothing_sticks_out_of_a_narrow_window(page: Page, mesh: Mesh) -> None:
    await page.set_viewport_size({"width": 390, "height": 800})
    await page.goto(f"{mesh.url}/docs")
    await page.locator("details.op").first.wait_for()
    await page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    await expect(page.locator("details.op .try").last).to_be_attached()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390
    await page.get_by_role("button", name="Contents").click()
    await expect(page.get_by_role("navigation", name="Contents")).to_be_visible()


async def test_operations_are_found_by_what_they_are_called(page: Page, mesh: Mesh) -> None:
    await page.goto(f"{mesh.url}/docs")
    await page.fill("#find", "watch")
    await expect(page.locator("details.op:visible")).to_have_count(1)
    await expect(page.locator("#op-watch_task")).to_be_visible()
