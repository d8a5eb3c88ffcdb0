"""`/llm/admin/replays`: asking for a batch, looking at it, ending it."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.fakes.engine import FakeEngine
from tests.integration.api_app import running
from tests.integration.replay_batch_cases import ALLOWS, Past, by_ticker, remember, working


async def test_the_routes_ask_show_list_and_end_batches(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("OPEN", made=0.02), Past("STAY")])
    asked_for = {"since": "2000-01-01T00:00:00Z", "prompt_key": "policy", "version": "1.1.0"}
    async with (
        FakeEngine(reply=by_ticker({"OPEN": ALLOWS})) as fake,
        running(monkeypatch, database_url, fake.base_url, tmp_path / "api") as api,
    ):
        answer = await api.http.post("/llm/admin/replays", json=asked_for)
        assert answer.status_code == 202
        queued = answer.json()
        assert (queued["state"], queued["total"], queued["done"], queued["report"]) == ("queued", None, 0, None)
        assert (queued["asked_by"], queued["prompt_version"]) == ("operator", "1.1.0")
        path = f"/llm/admin/replays/{queued['id']}"
        other = (await api.http.post("/llm/admin/replays", json={**asked_for, "limit": 1})).json()
        cancelled = await api.http.delete(f"/llm/admin/replays/{other['id']}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        again = await api.http.delete(f"/llm/admin/replays/{other['id']}")
        assert (again.status_code, again.json()["detail"]) == (
            409,
            f"batch {other['id']} has ended already: cancelled",
        )
        async with working(database_url, fake.base_url, tmp_path, monkeypatch) as replays:
            assert await replays.step() is True
        done = (await api.http.get(path)).json()
        assert (done["state"], done["total"], done["done"], done["failed"]) == ("done", 2, 2, 0)
        assert list(done["report"])[:3] == ["sentence", "prompt", "flips"]
        assert next(iter(done["report"]["flipped"][0])) == "words"
        listed = (await api.http.get("/llm/admin/replays")).json()
        assert [one["id"] for one in listed] == [other["id"], queued["id"]]
        assert all(one["report"] is None for one in listed)


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"prompt_key": "health", "version": "1.0.0"}, "only policy and rationale"),
        ({"version": "9.9.9"}, "policy has no version '9.9.9'"),
        ({"since": "2099-01-01T00:00:00Z"}, "since: must lie before until, and before now"),
        ({"until": "1999-01-01T00:00:00Z"}, "since: must lie before until"),
        ({"since": "2000-01-01T00:00:00"}, "since"),
        ({"since": 946684800}, "give the time as ISO 8601 text"),
        ({"limit": 0}, "limit"),
        ({"limits": 5}, "limits"),
    ],
)
async def test_the_route_refuses_what_makes_no_sense(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], detail: str
) -> None:
    body = {"since": "2000-01-01T00:00:00Z", "prompt_key": "policy", "version": "1.1.0"} | changes
    async with (
        FakeEngine() as fake,
        running(monkeypatch, database_url, fake.base_url, tmp_path) as api,
    ):
        answer = await api.http.post("/llm/admin/replays", json=body)
        assert answer.status_code == 422
        assert detail in answer.json()["detail"]
        unknown = await api.http.get("/llm/admin/replays/01a202f1-f24b-7184-bb80-0b4969ccbde1")
        assert unknown.status_code == 404
        open_to_all = await api.http.get("/llm/admin/replays", headers={"Authorization": "Bearer no"})
        assert open_to_all.status_code == 401
