"""The pages of evaluations: what they read and say, and the report behind the door."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import httpx
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.running.plan import Plan, read_plan
from libs.evaluation.sharing.register import register
from services.analytics.console.door.guard import COOKIE, SignedIn
from services.analytics.console.pages.evaluations import words as evaluation_words
from services.analytics.console.pages.evaluations.queries import Run, run, runs, trend
from services.analytics.console.pages.evaluations.report import evaluation_report
from tests.conformance.house import ROOT
from tests.integration.test_console_prompts import Office, office

__all__ = ["office"]

EVALUATIONS = ROOT / "tests" / "data" / "evaluation"
EVIL = '<script>document.title="pwned"</script>'


async def registered(engine: AsyncEngine, folder: str, *, html: str, **changes: Any) -> Plan:
    """As if an evaluation had been registered."""
    summary = json.loads((EVALUATIONS / folder / "summary.json").read_text())
    plan = replace(read_plan(EVALUATIONS / folder / "plan.json"), **changes)
    async with engine.begin() as connection:
        await register(connection, plan=plan, summary=summary, report_html=html, asked_by="ann")
    return plan


async def test_runs_their_trend_and_two_side_by_side(engine: AsyncEngine) -> None:
    stamp = {"model": {"name": "Lexi", "dialect": "vllm", "server": {"version": "0.19.0"}}}
    first = await registered(engine, "versions", html="<p>", evaluation_id=UUID(int=1), name="first", stamp=stamp)
    await registered(engine, "versions", html="<p>", evaluation_id=UUID(int=2), name=EVIL)
    async with engine.connect() as connection:
        found = await runs(connection)
        points = await trend(connection)
        pair = [await run(connection, each.id) for each in reversed(found)]
        assert await run(connection, UUID(int=3)) is None
        assert await runs(connection, before=found[-1].created_at) == []
    assert [each.name for each in found] == [EVIL, "first"]
    assert (found[1].model, found[1].cases, found[1].has_report) == ("Lexi vllm 0.19.0", first.cases, True)
    assert [one.version for one in found[1].prompts] == [one.version for one in first.versions]
    assert evaluation_words.verdict(found[1]) == evaluation_words.VERDICTS[found[1].passed]

    own, other = (each for each in pair if each is not None)
    assert own.summary is not None
    validity = [one["figures"]["validity"]["value"] for one in own.summary["versions"]]
    assert [point.value for point in points] == validity * 2
    assert own.made_at == first.made_at < own.created_at, "it began before it was registered"
    changes = [row[-1] for row in evaluation_words.trend_rows(points)]
    assert changes == ["+0.00 points"] * len(validity) + [""] * len(validity)
    table = {row[0]: row[1:] for row in evaluation_words.side_by_side([own, other])}
    assert len(table["validity"]) == 2 * len(validity)
    assert str(table["validity"][0]).startswith(f"{100 * validity[0]:.4g} %\n(")
    assert "n=" in str(table["validity"][0])
    asked_none = replace(own, passed=None)
    assert evaluation_words.verdict(asked_none) == "finished, no threshold was asked"
    assert "not asked" not in evaluation_words.versions(
        replace(own, prompts=tuple(replace(one, passed=None) for one in own.prompts))
    )
    assert evaluation_words.same_ground(own, other) == ["They asked different models: Lexi vllm 0.19.0 and unknown."]


async def test_the_report_is_behind_the_door_and_in_a_sandbox(office: Office) -> None:
    html = f"<!doctype html><h1>Evaluation</h1>{EVIL}"
    plan = await registered(office.engine, "versions", html=html, evaluation_id=UUID(int=1))
    app = FastAPI()
    app.include_router(evaluation_report(office.console))
    app.add_middleware(SignedIn, sessions=office.console.sessions)
    place = f"/evaluations/{plan.evaluation_id}/report"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://console") as client:
        outside = await client.get(place)
        assert (outside.status_code, outside.headers["location"]) == (303, f"/sign-in?next={place}")
        signed_in = office.console.sessions.sign_in(office.session.token.get_secret_value())
        assert signed_in is not None
        client.cookies.set(COOKIE, signed_in[0])
        answers = [await client.get(place, headers={"Accept-Encoding": way}) for way in ("gzip", "identity")]
        assert [answer.headers.get("content-encoding") for answer in answers] == ["gzip", None]
        for answer in answers:
            assert (answer.status_code, answer.text) == (200, html)
            policy = answer.headers["content-security-policy"].split("; ")
            assert {"sandbox", "default-src 'none'", "frame-ancestors 'none'"} <= set(policy)
            assert answer.headers["content-disposition"] == "inline"
        assert (await client.get(f"/evaluations/{UUID(int=9)}/report")).status_code == 404
        assert (await client.get("/evaluations/nothing/report")).status_code == 422


def test_a_figure_is_written_out_and_says_what_it_stands_on() -> None:
    run = SimpleNamespace(
        name="trial",
        summary={
            "versions": [
                {
                    "prompt": "policy",
                    "version": "1.0.0",
                    "cases": 3,
                    "asked": 3,
                    "passed": None,
                    "figures": {
                        "latency": {"value": 14620.4, "low": 9876.5, "high": 20000.0, "n": 3, "unit": "ms"},
                        "return_allowed": {"value": 0.04759, "low": None, "high": None, "n": 1, "unit": "return"},
                        "brier": {"value": None, "low": None, "high": None, "n": 0, "unit": "score"},
                    },
                }
            ]
        },
    )
    rows = {str(name): cell for name, cell in evaluation_words.side_by_side([cast("Run", run)])}
    assert rows["latency"] == "14,620 ms\n(9,876 to 20,000 ms, n=3)"
    assert rows["return allowed"] == "4.759 %\n(n=1)"
    assert (rows["thresholds"], rows["cases, twins aside"]) == ("no threshold was asked", 3)
    assert "brier" not in rows
