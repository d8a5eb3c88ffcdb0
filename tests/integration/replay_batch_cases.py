"""Stored decisions to ask again, and a process's work on them, for the tests of batch replays."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from libs.db.engine import DatabaseSettings, create_engine
from libs.judgement.record import features_llm
from libs.judgement.rules import Rules
from libs.judgement.types import Decision, Judgement, Side
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.model_client import open_model
from libs.replay.batch.ask import Patience
from libs.replay.batch.rows import Batch, ask_for, find
from libs.settings import load
from services.jobs.replays import Replays, road_to
from tests.conftest import ROOT
from tests.fakes.engine import Reply
from tests.integration.api_app import until
from tests.unit.judgement_cases import AS_OF, RULES, answer, good_inputs

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
PROMPTS = ROOT / "configs" / "llm_prompts.yaml"
ALLOWS: dict[str, Any] = {"allow": True, "reasons": [], "flags": []}
DENIES: dict[str, Any] = {"allow": False, "reasons": ["EARNINGS"], "flags": []}

STORE = text(
    """
    insert into forecasts (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper, features, judged_at)
    values ('replay:1', :ticker, '1d', 'theta', :as_of, :id, 100, 101, 98, 104,
      jsonb_build_object('llm', cast(:llm as jsonb)), now())
    """
)
CALL = text(
    """
    insert into llm_calls (ts, id, service, prompt_key, prompt_version, prompt_hash, upstream, model, success, status,
      total_ms, tokens_in, tokens_out, cached)
    values (:ts, :id, 'forecast', 'policy', '1.0.0', 'abc', 'lexi', 'Lexi', true, 'ok', :total_ms, 400, 20, false)
    """
)
OUTCOME = text(
    """
    insert into outcomes (feed, ticker, horizon, model, as_of, forecast_id, realised_as_of, last_price, realised_price,
      realised_return, inside)
    values ('replay:1', :ticker, '1d', 'theta', :as_of, :id, :as_of, 100, 100, :made, true)
    """
)


@dataclass(frozen=True, slots=True)
class Past:
    """One stored decision. `decision` None is an invalid answer; `status` may say that none came."""

    ticker: str
    day: int = 0
    decision: Mapping[str, Any] | None = field(default_factory=lambda: dict(DENIES))
    side: Side = "buy"
    made: float | None = None
    status: str | None = None
    coverage_pct: float = 100.0
    id: UUID = field(default_factory=uuid4)
    call_id: UUID = field(default_factory=uuid7)

    @property
    def as_of(self) -> datetime:
        return AS_OF + timedelta(days=self.day)

    def record(self) -> dict[str, Any]:
        """`features.llm`."""
        signal = replace(good_inputs().signal, side=self.side)
        inputs = good_inputs(ticker=self.ticker, as_of=self.as_of, signal=signal, coverage_pct=self.coverage_pct)
        status: Any = self.status or ("invalid" if self.decision is None else "ok")
        said = "{" if self.decision is None else json.dumps(self.decision)
        given = answer("policy", self.decision, text=said, status=status, call_id=self.call_id)
        decision = None
        if self.decision is not None:
            decision = Decision(self.decision["allow"], tuple(self.decision["reasons"]), ())
        prose = answer("rationale", "It rises by 77 %.", text="It rises by 77 %.", call_id=uuid7())
        rules = RULES.judge(inputs, "replay:1")
        return features_llm(
            Judgement(inputs, prose, given, decision, rules, ungrounded_numbers=("77",)), shadow_mode=True
        )


async def remember(engine: AsyncEngine, past: list[Past], *, calls: bool = True) -> None:
    """Store decisions as the forecast loop leaves them."""
    async with engine.begin() as connection:
        await connection.execute(text("select ensure_partition('llm_calls', 'day', now())"))
        for month in {(one.as_of.year, one.as_of.month): one.as_of for one in past}.values():
            await connection.execute(text("select ensure_partition('forecasts', 'month', :moment)"), {"moment": month})
        for one in past:
            same = {"ticker": one.ticker, "as_of": one.as_of, "id": one.id}
            await connection.execute(STORE, {**same, "llm": json.dumps(one.record())})
            if calls:
                await connection.execute(CALL, {"ts": datetime.now(UTC), "id": one.call_id, "total_ms": 100.0})
            if one.made is not None:
                await connection.execute(OUTCOME, {**same, "made": one.made})


async def asked(engine: AsyncEngine, *, key: str = "policy", version: str = "1.1.0", **more: Any) -> Batch:
    """A batch over everything that was stored until now."""
    registry = Registry.load_quietly(PROMPTS)
    async with engine.begin() as connection:
        values: dict[str, Any] = {"since": LONG_AGO, "asked_by": "ann", **more}
        return await ask_for(connection, registry, key=key, version=version, **values)


async def now_of(engine: AsyncEngine, batch: Batch) -> Batch:
    """The batch as it is now."""
    async with engine.connect() as connection:
        found = await find(connection, batch.id)
    assert found is not None
    return found


async def replays_of(engine: AsyncEngine, batch: Batch) -> list[RowMapping]:
    """What came of its decisions."""
    async with engine.connect() as connection:
        rows = await connection.execute(
            text("select * from replays where batch_id = :id order by as_of, ticker"), {"id": batch.id}
        )
        return list(rows.mappings())


def write_upstreams(folder: Path, *, share: int = 4, dialect: str = "vllm") -> Path:
    """One upstream with so many slots for the jobs."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "upstreams.yaml"
    shares = f"{{jobs: {share}, forecast: {share}}}"
    path.write_text(f"upstreams: [{{name: lexi, dialect: {dialect}, slots: 64, shares: {shares}}}]\n")
    return path


@asynccontextmanager
async def working(
    database_url: str,
    base_url: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    share: int = 4,
    upstreams: Path | None = None,
    **waits: float,
) -> AsyncGenerator[Replays]:
    """Replays as the process has them, on a road to `base_url`."""
    monkeypatch.setenv("LLM_BASE_URL", base_url)
    monkeypatch.setenv("LLM_CONNECT_TIMEOUT_S", "1")
    monkeypatch.setenv("UPSTREAMS_FILE", str(upstreams or write_upstreams(folder, share=share)))
    monkeypatch.chdir(ROOT)
    database = DatabaseSettings(database_url=SecretStr(database_url))
    engine, own = create_engine(database, application="test"), create_engine(database, application="test", pool_size=1)
    try:
        async with open_model(engine, role="jobs", state_dir=folder / "state") as model:
            road = road_to(model, Rules.load(ROOT / "configs" / "rules.yaml"), load(LLMSettings))
            yield Replays(own, replace(road, patience=Patience(**{"first_s": 0.05, "longest_s": 0.2} | waits)))
    finally:
        await own.dispose()
        await engine.dispose()


def by_ticker(said: dict[str, Any]) -> Any:
    """Answers by the ticker that the prompt names."""

    def reply(body: dict[str, Any]) -> str | Reply:
        for ticker, given in said.items():
            if any(message["content"].startswith(f"{ticker} ") for message in body["messages"]):
                return given if isinstance(given, str | Reply) else json.dumps(given)
        return json.dumps(DENIES)

    return reply


async def until_stored(engine: AsyncEngine, batch: Batch, count: int) -> None:
    """Wait until that many decisions were answered."""
    await until(lambda: replays_of(engine, batch), lambda rows: len(rows) >= count)
