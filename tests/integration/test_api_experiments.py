"""`GET /llm/admin/experiments/{key}` on a real database, with planted exposures."""

import random
from collections.abc import AsyncGenerator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.keys import create_key, parse_scopes
from libs.llm.activations import activate
from libs.llm.in_force import ground_of
from libs.llm.registry import Registry
from tests.fakes.engine import FakeEngine
from tests.integration.api_app import Stack, running
from tests.integration.exposure_tables import insert
from tests.unit.exposure_cases import CANDIDATE, CONTROL, Row, slow_counts
from tests.unit.test_exposures_report import experiment, planted, told

ROUTE = "/llm/admin/experiments/policy"
PROMPTS = Path("configs/llm_prompts.yaml")


async def ramp(engine: AsyncEngine, arms: tuple[tuple[str, float], ...], *, key: str = "policy") -> str:
    """Activate arms as promote, ramp and guardrails do; returns the name of the phase."""
    registry = Registry.load(PROMPTS, PROMPTS.with_suffix(".lock"))
    async with engine.begin() as connection:
        made = await activate(
            connection,
            key=key,
            version=CONTROL,
            arms=arms,
            who="ada",
            why="try it",
            ground=ground_of(registry, key, {}),
        )
    assert made is not None
    return f"activation-{made.id}"


@pytest.fixture
async def fake() -> AsyncGenerator[FakeEngine, None]:
    async with FakeEngine(dialect="vllm", slots=8) as engine:
        yield engine


@pytest.fixture
async def stack(
    monkeypatch: pytest.MonkeyPatch, database_url: str, fake: FakeEngine, tmp_path: Path
) -> AsyncGenerator[Stack, None]:
    """Nothing runs on any prompt."""
    async with running(monkeypatch, database_url, fake.base_url, tmp_path) as made:
        yield made


async def ask(stack: Stack, **query: Any) -> httpx.Response:
    return await stack.http.get(ROUTE, params=query)


async def refreshed(stack: Stack) -> None:
    """The process looks at the activations now instead of within two seconds."""
    await stack.app.state.api.prompts.refresh()


def faster(row: Row, _chance: random.Random) -> Row:
    return replace(row, total_ms=(row.total_ms or 0) / 2)


async def test_a_running_experiment_is_reported_whole(stack: Stack, engine: AsyncEngine) -> None:
    phase = await ramp(engine, ((CONTROL, 50), (CANDIDATE, 50)))
    await refreshed(stack)
    rows = planted(40, faster)
    await insert(engine, rows, phase=phase)
    await insert(engine, planted(5), phase="activation-999")
    answer = await ask(stack)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["key"], body["state"], body["phase"], body["unit"]) == ("policy", "running", phase, "ticker_day")
    assert body["control"] == CONTROL
    assert None not in (body["since"], body["judged_at"])
    for arm in body["arms"]:
        counts = slow_counts(rows, arm["arm"])
        assert {**asdict(counts), "weight": 50} == arm
    assert body["sample_ratio"]["assigned"]["alarm"] is False
    assert body["sample_ratio"]["settled"]["p_value"] > 0.001
    metrics = {one["name"]: one for one in body["metrics"]}
    assert len(metrics) == 8
    latency = metrics["latency"]
    assert (latency["unit"], latency["better"], latency["worth"]) == ("milliseconds", "down", 100)
    assert [figure["arm"] for figure in latency["arms"]] == [CONTROL, CANDIDATE]
    assert all(figure["low"] < figure["mean"] < figure["high"] for figure in latency["arms"])
    (beside,) = latency["differences"]
    assert (beside["candidate"], beside["verdict"]) == (CANDIDATE, "better")
    assert beside["low"] < beside["value"] < beside["high"] < 0
    assert beside["p"] < beside["p_adjusted"] < 0.05
    assert body["verdicts"] == {CANDIDATE: "better"}
    assert body["sentence"] == told(rows, experiment()).sentence
    assert {(one["name"], one["arm"], one["breached"]) for one in body["guardrails"]} == {
        ("invalid_rate", CANDIDATE, False),
        ("timeout_rate", CANDIDATE, False),
        ("deny_to_allow", CANDIDATE, False),
    }
    (change,) = body["history"]
    assert (change["version"], change["arms"], change["who"]) == (CONTROL, {CONTROL: 50, CANDIDATE: 50}, "ada")


async def test_an_experiment_that_has_just_begun_says_so(stack: Stack, engine: AsyncEngine) -> None:
    await ramp(engine, ((CONTROL, 99), (CANDIDATE, 1)))
    await refreshed(stack)
    body = (await ask(stack)).json()
    assert body["since"] is None
    assert [arm["exposures"] for arm in body["arms"]] == [0, 0]
    assert body["sample_ratio"] == {"assigned": None, "settled": None}
    assert body["verdicts"] == {CANDIDATE: "not enough data"}
    assert body["sentence"] == "Nothing has been assigned in this phase yet."


async def test_an_arm_that_loses_its_answers_alarms_at_outcome(stack: Stack, engine: AsyncEngine) -> None:
    phase = await ramp(engine, ((CONTROL, 50), (CANDIDATE, 50)))
    await refreshed(stack)

    def lose(row: Row, chance: random.Random) -> Row:
        return replace(row, status="skipped", allow=None) if chance.random() < 0.5 else row

    await insert(engine, planted(40, lose), phase=phase)
    body = (await ask(stack)).json()
    assert body["sample_ratio"]["assigned"]["alarm"] is False
    assert body["sample_ratio"]["settled"]["alarm"] is True
    assert "no comparison can be trusted" in body["sentence"]
    assert {beside["verdict"] for one in body["metrics"] for beside in one["differences"]} == {"not enough data"}


async def test_a_phase_that_has_ended_is_reported_with_its_weights(stack: Stack, engine: AsyncEngine) -> None:
    first = await ramp(engine, ((CONTROL, 90), (CANDIDATE, 10)))
    second = await ramp(engine, ((CONTROL, 50), (CANDIDATE, 50)))
    await refreshed(stack)
    await insert(engine, planted(12), phase=first)
    body = (await ask(stack, phase=first)).json()
    assert (body["state"], body["phase"]) == ("ended", first)
    assert [arm["weight"] for arm in body["arms"]] == [90, 10]
    assert body["sample_ratio"]["assigned"]["alarm"] is True
    assert [change["id"] for change in body["history"]] == [
        int(phase.removeprefix("activation-")) for phase in (second, first)
    ]


async def test_of_a_phase_nobody_wrote_down_the_arms_are_known_and_the_weights_are_not(
    stack: Stack, engine: AsyncEngine
) -> None:
    rows = [replace(row, arm="1.0.0" if row.ticker > "T05" else "0.1.0") for row in planted(12)]
    await insert(engine, rows, phase="environment-0123abcd")
    body = (await ask(stack, phase="environment-0123abcd")).json()
    assert (body["state"], body["control"]) == ("ended", "1.0.0")
    assert [(arm["arm"], arm["weight"]) for arm in body["arms"]] == [("1.0.0", None), ("0.1.0", None)]
    assert body["sample_ratio"] == {"assigned": None, "settled": None}


async def test_where_none_runs_the_last_phase_is_named(stack: Stack, engine: AsyncEngine) -> None:
    nothing = await ask(stack)
    assert nothing.status_code == 404
    assert nothing.json()["detail"] == "no experiment runs on policy; none ever gave a forecast an arm"
    await insert(engine, planted(1), phase="activation-7")
    async with engine.begin() as connection:
        await connection.execute(text("update exposures set assigned_at = now() - interval '1 day'"))
    await insert(engine, planted(1), phase="activation-8")
    ended = await ask(stack)
    assert ended.status_code == 404
    assert ended.json()["detail"] == "no experiment runs on policy; the last phase was activation-8"
    unknown = await ask(stack, phase="activation-9")
    assert unknown.status_code == 404
    assert unknown.json()["detail"] == "policy has no phase activation-9; the last phase was activation-8"


async def test_what_does_not_exist_and_what_is_misspelt_are_told_apart(stack: Stack) -> None:
    gone = await stack.http.get("/llm/admin/experiments/nothing")
    assert (gone.status_code, gone.json()["detail"]) == (404, "there is no prompt nothing")
    assert (await ask(stack, fase="activation-1")).status_code == 422
    assert (await ask(stack, phase="")).status_code == 422


async def test_only_an_admin_sees_it(stack: Stack, tmp_path: Path) -> None:
    assert (await stack.http.get(ROUTE, headers={"Authorization": ""})).status_code == 401
    reader = create_key(tmp_path / "keys.json", "reader", parse_scopes("read"))
    wrong = await stack.http.get(ROUTE, headers={"Authorization": f"Bearer {reader}"})
    assert wrong.status_code == 403


async def test_a_prompt_that_decides_nothing_is_compared_by_what_it_has(stack: Stack, engine: AsyncEngine) -> None:
    await ramp(engine, ((CONTROL, 50), (CANDIDATE, 50)), key="rationale")
    await refreshed(stack)
    body = (await stack.http.get("/llm/admin/experiments/rationale")).json()
    assert [one["name"] for one in body["metrics"]] == ["validity", "latency", "tokens"]
