"""Trainings that ended long ago go with their files and jobs; adapters stay, and what another goes on from."""

import asyncio
import contextlib
from typing import Any

import pytest

from tests.integration.training.conftest import PATH, Mesh, picture

RETENTION = "/api/v1/retention"


async def keep(mesh: Mesh, days: int, **more: Any) -> None:
    body = {"kind": "trainings", "days": days, **more}
    answer = await mesh.http("ops", ("operator",)).post(RETENTION, json=body)
    assert answer.status_code == 200, answer.text


async def age(mesh: Mesh, days: int) -> None:
    interval = f"interval '{days} days'"
    await mesh.execute(
        f"UPDATE trainings SET created_at = created_at - {interval}, completed_at = completed_at - {interval}"
    )


async def prune(mesh: Mesh) -> None:
    mesh.training.retention._rest = 0.0
    while await mesh.training.retention.run_once():
        pass
    while await mesh.training.maintenance.sweep():
        pass


async def left(mesh: Mesh) -> set[str]:
    return {row[0] for row in await mesh.rows("SELECT id::text FROM trainings")}


async def test_an_old_training_goes_and_its_adapter_stays(mesh: Mesh) -> None:
    done, path = await mesh.trained()
    waits = (await mesh.create())["id"]
    await age(mesh, 10)
    await prune(mesh)
    assert await left(mesh) == {done["id"], waits}, "without an age nothing is deleted"
    await keep(mesh, 9)
    support = mesh.http("ops", ("support",))
    [line] = (await support.get(f"{RETENTION}/preview/trainings")).json()["lines"]
    assert (line["tenant"], line["days"], line["rows"], line["bytes_estimated"]) == ("acme", 9, 1, False)
    assert line["bytes"] > 100
    assert (await support.get(f"{RETENTION}/preview/trainings", params={"days": 11})).json() == {"lines": []}
    await prune(mesh)
    assert await left(mesh) == {waits}
    assert {path.split("/")[1] for path in await mesh.objects("trainings/")} <= {waits}
    assert await mesh.objects("loras/") == [f"loras/{path}"]
    for table in ("datasets", "losses", "saves"):
        assert await mesh.rows(f"SELECT count(*) FROM {table} WHERE training_id = %s", done["id"]) == [(0,)]
    async with mesh.tasks.database.connection() as conn:
        jobs = await (await conn.execute("SELECT id::text FROM tasks")).fetchall()
    assert jobs == [(waits,)]
    assert (await mesh.http().get(PATH + done["id"])).status_code == 404


async def test_a_training_that_another_goes_on_from_goes_after_it(mesh: Mesh) -> None:
    done, _ = await mesh.trained()
    more = (await mesh.http().post(f"{PATH}{done['id']}/continue", json={"steps": 5})).json()
    await age(mesh, 10)
    await keep(mesh, 1)
    await prune(mesh)
    assert await left(mesh) == {done["id"], more["id"]}
    await mesh.http().post(f"{PATH}{more['id']}/cancel")
    await mesh.execute("UPDATE trainings SET completed_at = now() - interval '2 days' WHERE id = %s", more["id"])
    await mesh.execute("DELETE FROM webhook_handovers")
    await prune(mesh)
    assert await left(mesh) == {done["id"]}
    await prune(mesh)
    assert await left(mesh) == set()
    assert await mesh.rows("SELECT count(*) FROM object_sweeps WHERE due_at <= now()") == [(0,)]


async def test_a_training_stays_until_its_webhook_is_handed_in(mesh: Mesh) -> None:
    done, _ = await mesh.trained(webhook_url="https://example.com/hook")
    assert (await mesh.rows("SELECT count(*) > 0 FROM webhook_handovers")) == [(True,)]
    await age(mesh, 10)
    await keep(mesh, 1, tenant="acme")
    await prune(mesh)
    assert await left(mesh) == {done["id"]}
    await mesh.training.maintenance.hand_over()
    await prune(mesh)
    assert await left(mesh) == {done["id"]}, "it is handed in, and not delivered"
    async with mesh.tasks.database.transaction() as conn:
        await conn.execute("DELETE FROM webhook_deliveries")
    await prune(mesh)
    assert await left(mesh) == set()


async def test_ages_by_json(mesh: Mesh) -> None:
    operator = mesh.http("ops", ("operator",))
    await keep(mesh, 90)
    await keep(mesh, 0, tenant="acme")
    ages = (await operator.get(RETENTION, params={"kind": "trainings"})).json()["ages"]
    assert [(one["tenant"], one["days"]) for one in ages] == [("*", 90), ("acme", 0)]
    assert all(one["set_at"] for one in ages)
    removed = await operator.post(f"{RETENTION}/remove", json={"kind": "trainings", "tenant": "acme"})
    assert removed.json()["age"]["days"] == 90
    for body in ({"kind": "trainings"}, {"days": 1}, {"kind": "cats", "days": 1}, {"kind": "tasks", "days": -1}):
        assert (await operator.post(RETENTION, json=body)).status_code == 422, body
    assert (await mesh.http().post(RETENTION, json={"kind": "tasks", "days": 1})).status_code == 403


async def test_tasks_whose_files_a_training_names_are_held_until_it_has_ended(mesh: Mesh) -> None:
    named = (await mesh.create())["id"]  # any row that tasks has
    path = f"generations/{named}/1/image.png"
    await mesh.put(path, picture())
    waits = await mesh.create(source_images=[path])
    await mesh.training.holds.renew()
    held = "SELECT task_id::text, held_until > now() + interval '23 hours' FROM task_holds"
    async with mesh.tasks.database.connection() as conn:
        assert await (await conn.execute(held)).fetchall() == [(named, True)]
    await mesh.http().post(f"{PATH}{waits['id']}/cancel")
    await mesh.execute_tasks("DELETE FROM task_holds")
    await mesh.training.holds.renew()
    async with mesh.tasks.database.connection() as conn:
        assert await (await conn.execute(held)).fetchall() == []


async def test_a_training_that_has_ended_is_deleted_as_a_job_and_its_adapter_stays(mesh: Mesh) -> None:
    done, path = await mesh.trained()
    jobs = mesh.http()
    assert (await mesh.http("other").delete(f"/api/jobs/{done['id']}")).status_code == 404
    waits = (await mesh.create())["id"]
    refused = await jobs.delete(f"/api/jobs/{waits}")
    assert (refused.status_code, await left(mesh)) == (409, {done["id"], waits}), "it has not ended"
    deleted = await jobs.delete(f"/api/jobs/{done['id']}")
    assert (deleted.status_code, deleted.json()) == (200, {"deleted": True, "job_id": done["id"]})
    assert await left(mesh) == {waits}
    assert (await jobs.delete(f"{PATH}{done['id']}")).status_code == 404
    while await mesh.training.maintenance.sweep():
        pass
    assert {path.split("/")[1] for path in await mesh.objects("trainings/")} <= {waits}
    assert await mesh.objects("loras/") == [f"loras/{path}"]


async def test_what_a_late_trainer_writes_after_the_deletion_goes_too(mesh: Mesh) -> None:
    done, _ = await mesh.trained()
    assert (await mesh.http().delete(f"{PATH}{done['id']}")).status_code == 200
    while await mesh.training.maintenance.sweep():
        pass
    await mesh.put(f"trainings/{done['id']}/state/1/late.safetensors", b"state")
    await mesh.execute("UPDATE object_sweeps SET due_at = now() - interval '1 second'")
    while await mesh.training.maintenance.sweep():
        pass
    assert await mesh.objects("trainings/") == []
    assert await mesh.rows("SELECT count(*) FROM object_sweeps") == [(0,)]


async def test_a_training_that_another_goes_on_from_is_not_deleted(mesh: Mesh) -> None:
    done, _ = await mesh.trained()
    answer = await mesh.http().post(f"{PATH}{done['id']}/continue", json={"steps": 5})
    assert answer.status_code == 200, answer.text
    refused = await mesh.http().delete(f"{PATH}{done['id']}")
    assert (refused.status_code, done["id"] in await left(mesh)) == (409, True)


@pytest.mark.parametrize("deleted", [True, False], ids=["that-takes-place", "that-is-undone"])
async def test_a_training_is_continued_during_its_deletion(mesh: Mesh, deleted: bool) -> None:
    done, _ = await mesh.trained()
    path = f"{PATH}{done['id']}/continue"
    async with contextlib.AsyncExitStack() as stack:
        conn = await stack.enter_async_context(mesh.training.database.connection())
        await conn.execute("DELETE FROM trainings WHERE id = %s", (done["id"],))
        going_on = asyncio.create_task(mesh.http().post(path, json={"steps": 5}))
        await until_one_waits(mesh)
        assert not going_on.done()
        await (conn.commit() if deleted else conn.rollback())
    answer = await going_on
    assert answer.status_code == (404 if deleted else 200), answer.text
    assert len(await left(mesh)) == (0 if deleted else 2)


async def test_a_training_is_deleted_while_it_is_continued(mesh: Mesh) -> None:
    done, _ = await mesh.trained()
    async with mesh.training.database.connection() as conn:
        await conn.execute("SELECT FROM trainings WHERE id = %s FOR SHARE", (done["id"],))
        refused = await mesh.http().delete(f"{PATH}{done['id']}")
        await conn.rollback()
    assert (refused.status_code, await left(mesh)) == (409, {done["id"]})


@pytest.mark.parametrize("has_state", [True, False])
async def test_a_training_is_continued_while_its_files_are_given_up(mesh: Mesh, has_state: bool) -> None:
    done, _ = await mesh.trained()
    step = 3 if has_state else None
    await mesh.execute("UPDATE trainings SET resume_step = %s, manifest_path = 'm' WHERE id = %s", step, done["id"])
    async with mesh.training.database.connection() as conn:
        await conn.execute(
            "UPDATE trainings SET swept_at = now(), resume_step = NULL, manifest_path = NULL WHERE id = %s",
            (done["id"],),
        )
        going_on = asyncio.create_task(mesh.http().post(f"{PATH}{done['id']}/continue", json={"steps": 5}))
        await until_one_waits(mesh)
        await conn.commit()
    refused = await going_on
    assert refused.status_code == 409, refused.text
    assert await left(mesh) == {done["id"]}
    again = await mesh.http().post(f"{PATH}{done['id']}/continue", json={"steps": 5})
    assert again.status_code == 200, "from its adapter"


# Who is about to lock trainings waits in the midst of the statement, whose view of the rows is fixed by then.
_PAUSE = """
ALTER TABLE trainings RENAME TO all_trainings;
CREATE FUNCTION go_on() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF current_query() LIKE '%SKIP LOCKED%' THEN PERFORM pg_advisory_xact_lock_shared(7); END IF;
    RETURN true;
END $$;
CREATE VIEW trainings AS SELECT * FROM all_trainings WHERE go_on()
"""


@pytest.mark.parametrize("way", ["given-up", "deleted"])
async def test_a_training_is_continued_after_the_statement_has_begun_that_would_take_its_files(
    mesh: Mesh, way: str
) -> None:
    done, _ = await mesh.trained()
    follows = await mesh.http().post(f"{PATH}{done['id']}/continue", json={"steps": 5})
    await mesh.execute("UPDATE trainings SET continues = NULL, completed_at = NULL WHERE id = %s", follows.json()["id"])
    await age(mesh, 10_000)
    async with mesh.training.database.transaction() as conn:
        await conn.execute(_PAUSE.encode())
    async with mesh.training.database.transaction() as conn:
        await conn.execute("SELECT pg_advisory_xact_lock(7)")
        if way == "given-up":
            taking: Any = asyncio.create_task(mesh.training.maintenance.age_out())
        else:
            taking = asyncio.create_task(mesh.http().delete(f"{PATH}{done['id']}"))
        await until_one_waits(mesh)
        await mesh.execute("UPDATE all_trainings SET continues = %s WHERE id = %s", done["id"], follows.json()["id"])
    taken = await taking
    if way == "deleted":
        assert taken.status_code == 409, taken.text
    assert await mesh.rows("SELECT swept_at FROM all_trainings WHERE id = %s", done["id"]) == [(None,)]


async def until_one_waits(mesh: Mesh) -> None:
    """Waits until some transaction waits for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(60):
        while await mesh.rows(waiting) == [(0,)]:  # noqa: ASYNC110 -- what is waited for lies in another process
            await asyncio.sleep(0.02)
