"""`/docs` in a browser: everything is there, and requests can be tried."""

import json
from urllib.parse import urlsplit

import httpx
from playwright.async_api import Locator, Page, expect

from tests.integration.gateway.conftest import Mesh

SEED = (1 << 62) + 1


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
