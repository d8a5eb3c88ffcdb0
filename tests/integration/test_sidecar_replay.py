"""What the api makes of the sidecar's calls: it shows them, and refuses to ask anew what it has no prompt for."""

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.api_app import running
from tests.integration.replay_cases import replay, replayed
from tests.integration.sidecar_app import entries_of, sidecar, two_models


async def test_calls_of_the_sidecar_are_shown_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str, engine: AsyncEngine
) -> None:
    async with two_models() as (hermes, phi3):
        entries = entries_of(hermes, phi3)
        async with sidecar(monkeypatch, tmp_path, *entries, DATABASE_URL=database_url) as http:
            for path in ("/generate/hermes/", "/propose_trade_adjustments/"):
                assert "error" not in (await http.post(path, json={"prompt": "Well?"})).json()
        async with engine.connect() as connection:
            rows = (await connection.execute(text("select id, prompt_key from llm_calls order by id"))).all()
        assert [row.prompt_key for row in rows] == ["generate", "adjustment", "adjustment_review"]
        asked = len(hermes.requests) + len(phi3.requests)
        async with running(monkeypatch, database_url, hermes.base_url, tmp_path / "api") as stack:
            for call_id, key in rows:
                assert (await stack.http.get(f"/llm/admin/call/{call_id}")).json()["prompt_key"] == key
                recorded = await replayed(stack, call_id)
                assert (recorded["cached"], recorded["success"], recorded["prompt_key"]) == (True, True, key)
                for way in ({"force": True}, {"version": "1.0.0"}, {"version": "9", "force": True}):
                    refused = await replay(stack, call_id, **way)
                    assert refused.status_code == 409
                    assert refused.headers["content-type"] == "application/problem+json"
                    assert f"the prompt {key!r}, which is not among the prompts here" in refused.json()["detail"]
        assert len(hermes.requests) + len(phi3.requests) == asked
