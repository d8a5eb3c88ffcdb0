"""Data sets made from stored forecasts, in a real database, and from bars."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseError
from libs.evaluation.cases.case import EvalCase
from libs.evaluation.cases.dataset import check, select
from libs.judgement.assess import POLICY, RATIONALE
from libs.judgement.record import features_llm
from libs.judgement.types import Decision, Inputs, Judgement, Side
from libs.settings import SettingsError
from tests.unit.judgement_cases import AS_OF, RULES, answer, good_inputs
from tools.llm_eval import extract
from tools.llm_eval.extract_strata import STORED, shares
from tools.llm_eval.refusal import UsageRefused

FORECAST = text(
    """
    insert into forecasts
      (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper, features, ts, judged_at)
    values (:feed, 'AAPL', '1d', 'theta', :as_of, :id, 100, 101, 98, 104, cast(:features as jsonb),
      now() - make_interval(days => :age), case when :judged then now() end)
    """
)
OUTCOME = text(
    """
    insert into outcomes (feed, ticker, horizon, model, as_of, forecast_id, realised_as_of, last_price, realised_price,
      realised_return, inside)
    select :feed, 'AAPL', '1d', 'theta', :as_of, :id, :later, 100, 100 * (1 + change), change, true
    from cast(:change as float8) as change
    """
)


def inputs_on(day: int, side: Side = "buy", coverage: float = 100.0) -> Inputs:
    """Inputs of a day, with facts as old as they were on the first."""
    as_of = AS_OF + timedelta(days=day)
    facts = {name: replace(fact, as_of=as_of - timedelta(days=1)) for name, fact in good_inputs().facts.items()}
    signal = replace(good_inputs().signal, side=side)
    return good_inputs(as_of=as_of, facts=facts, signal=signal, coverage_pct=coverage)


async def store(
    engine: AsyncEngine,
    day: int,
    *,
    allow: bool | None = True,
    change: float | None = 0.01,
    side: Side = "buy",
    rules_allow: bool = True,
    feed: str = "eval",
    judged: bool = True,
    age: int = 0,
) -> UUID:
    """A forecast as the loop leaves it; without `allow` its policy answer was invalid."""
    inputs = inputs_on(day, side, coverage=100.0 if rules_allow else 10.0)
    decision = None if allow is None else Decision(allow, (), ())
    policy = answer(POLICY, None if allow is None else {"allow": allow, "reasons": [], "flags": []})
    judgement = Judgement(
        inputs=inputs,
        rationale=answer(RATIONALE, "Up."),
        policy=replace(policy, status="invalid", error="schema: no") if allow is None else policy,
        decision=decision,
        rules=RULES.judge(inputs, feed),
    )
    assert judgement.rules.allow == rules_allow
    forecast_id = uuid4()
    row: dict[str, Any] = {"feed": feed, "as_of": inputs.as_of, "id": forecast_id, "age": age, "judged": judged}
    async with engine.begin() as connection:
        await connection.execute(text("select ensure_partition('forecasts', 'month', :at)"), {"at": inputs.as_of})
        await connection.execute(FORECAST, row | {"features": json.dumps({"llm": features_llm(judgement, True)})})
        if change is not None:
            outcome = {"feed": feed, "as_of": inputs.as_of, "id": forecast_id, "change": change}
            await connection.execute(OUTCOME, outcome | {"later": inputs.as_of + timedelta(days=1)})
    return forecast_id


def options(out: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    extract.add_arguments(parser)
    return parser.parse_args(["--out", str(out), *words])


async def extracted(out: Path, *words: str) -> list[EvalCase]:
    """The cases that a command writes."""
    assert await extract.extract(options(out, *words)) == 0
    return list(select(check(out), limit=None, seed=1))


@pytest.fixture
def there(engine: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncEngine:
    """A database that the command finds."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return engine


async def store_all_strata(engine: AsyncEngine) -> dict[str, set[str]]:
    """Some forecasts of every stratum; their ids."""
    ids: dict[str, set[str]] = {name: set() for name in STORED}
    for day in range(3):
        ids[STORED[0]].add(str(await store(engine, day, change=-0.02)))
    for day in range(3, 5):
        ids[STORED[1]].add(str(await store(engine, day, rules_allow=False, change=-0.01)))
    ids[STORED[1]].add(str(await store(engine, 5, allow=False)))
    ids[STORED[2]].add(str(await store(engine, 6, allow=None, change=0.05)))
    for day in range(7, 11):
        side: Side = "sell" if day % 2 else "buy"
        change = -0.03 if day % 2 else 0.03
        ids[STORED[3]].add(str(await store(engine, day, allow=False, rules_allow=False, side=side, change=change)))
    for day in range(11, 31):
        ids[STORED[4]].add(str(await store(engine, day)))
    ids[STORED[4]].add(str(await store(engine, 31, change=None)))
    ids[STORED[4]].add(str(await store(engine, 32, side="none", rules_allow=False, allow=False, change=0.4)))
    return ids


async def test_stored_forecasts_are_balanced_toward_the_dangerous_errors(
    there: AsyncEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = await store_all_strata(there)
    cases = await extracted(tmp_path / "d.jsonl", "--limit", "16")
    taken = Counter(name for case in cases for name, members in ids.items() if case.id in members)
    assert taken == {STORED[0]: 3, STORED[1]: 3, STORED[2]: 1, STORED[3]: 4, STORED[4]: 5}
    said = capsys.readouterr().out
    assert "d.jsonl: 16 cases, sha256 " in said
    for name, count in taken.items():
        assert any(line.split() == [*name.split(), str(count), "of", str(len(ids[name]))] for line in said.splitlines())
    assert [case.as_of for case in cases] == sorted(case.as_of for case in cases)


async def test_a_case_is_what_was_judged_with_what_came_of_it(there: AsyncEngine, tmp_path: Path) -> None:
    first = await store(there, 0, change=-0.02)
    second = await store(there, 1, rules_allow=False, change=None)
    one, other = await extracted(tmp_path / "d.jsonl")
    assert (one.id, one.feed, one.inputs, one.target) == (str(first), "eval", inputs_on(0), True)
    assert one.realised is not None
    assert (one.realised.change, one.realised.at) == (-0.02, AS_OF + timedelta(days=1))
    assert (other.id, other.target, other.realised) == (str(second), False, None)


async def test_without_balance_it_is_a_plain_sample(there: AsyncEngine, tmp_path: Path) -> None:
    ids = await store_all_strata(there)
    everything = {one for members in ids.values() for one in members}
    drawn = [
        {
            case.id
            for case in await extracted(tmp_path / f"{name}.jsonl", "--no-balance", "--limit", "16", "--seed", seed)
        }
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 16
    assert {case.id for case in await extracted(tmp_path / "all.jsonl", "--no-balance")} == everything


async def test_a_period_and_the_newest_run_of_the_replay_count(there: AsyncEngine, tmp_path: Path) -> None:
    old = await store(there, 0, age=5)
    await store(there, 1, feed="replay:1", age=3)
    new = await store(there, 1, feed="replay:2")
    await store(there, 2, judged=False)
    assert {case.id for case in await extracted(tmp_path / "a.jsonl")} == {str(old), str(new)}
    assert {case.id for case in await extracted(tmp_path / "b.jsonl", "--since", "24h")} == {str(new)}
    assert {case.id for case in await extracted(tmp_path / "c.jsonl", "--until", "4d")} == {str(old)}


async def test_records_that_cannot_be_read_are_counted_and_left_out(
    there: AsyncEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = await store(there, 0)
    broken = await store(there, 1)
    async with there.begin() as connection:
        await connection.execute(
            text("update forecasts set features = features #- '{llm,inputs,signal,mean}' where id = :id"),
            {"id": broken},
        )
    assert [case.id for case in await extracted(tmp_path / "d.jsonl")] == [str(good)]
    assert "left out: inputs: mean is missing (1)" in capsys.readouterr().out


async def test_an_empty_database_and_none_at_all(
    there: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "d.jsonl"
    with pytest.raises(UsageRefused, match=r"no judged forecast is stored since 20.*: `make run` makes some"):
        await extract.extract(options(out, "--since", "24h"))
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(DatabaseError, match=r"cannot use the database at 127\.0\.0\.1:1"):
        await extract.extract(options(out))
    monkeypatch.delenv("DATABASE_URL")
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        await extract.extract(options(out))
    assert names_in(tmp_path) == []


def names_in(folder: Path) -> list[str]:
    """What is in a folder."""
    return [path.name for path in folder.iterdir()]


def bars_csv(path: Path, sessions: int = 80) -> Path:
    """A file of bars as `FORECAST_FEED=file:` reads it: two tickers with a drift and a wave."""
    rows = ["ticker,date,open,high,low,close,volume"]
    for day in range(sessions):
        date = (datetime(2024, 1, 1) + timedelta(days=day)).date()  # noqa: DTZ001 - a date
        for ticker, level in (("ABC", 10.0), ("XYZ", 300.0)):
            close = level * (1 + 0.002 * day + 0.05 * ((day * 7) % 11 - 5) / 11)
            rows.append(f"{ticker},{date},{close},{close + 1},{close - 1},{close},90000000")
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


async def test_a_file_of_bars_becomes_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORECAST_CALENDAR", "24/7")
    path = bars_csv(tmp_path / "bars.csv")
    cases = await extracted(tmp_path / "d.jsonl", "--from", f"file:{path}")
    assert {case.ticker for case in cases} == {"ABC", "XYZ"}
    assert len(cases) == 2 * 15
    assert {case.feed for case in cases} == {"file:bars.csv"}
    assert all(case.realised is not None and case.target is False for case in cases)
    said = capsys.readouterr().out
    assert "UNKNOWN_EARNINGS 30" in said
    assert "no case is to be allowed" in said
    later = await extracted(tmp_path / "e.jsonl", "--from", f"file:{path}", "--since", "2024-03-15", "--limit", "5")
    assert len(later) == 5
    assert min(case.as_of for case in later).date().isoformat() >= "2024-03-15"


async def test_the_bundled_bars_become_cases(tmp_path: Path) -> None:
    cases = await extracted(tmp_path / "d.jsonl", "--from", "replay", "--limit", "20")
    assert cases == await extracted(tmp_path / "e.jsonl", "--from", "replay", "--limit", "20")
    assert {case.target for case in cases} == {True, False}
    assert any(case.target and not case.won for case in cases)


async def test_what_cannot_be_extracted_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(out: Path, *words: str) -> str:
        with pytest.raises(UsageRefused) as caught:
            await extract.extract(options(out, *words))
        return str(caught.value)

    path = bars_csv(tmp_path / "bars.csv")
    assert "is there already" in await refused(bars_csv(tmp_path / "old.jsonl"), "--from", "replay")
    assert "there is no folder" in await refused(tmp_path / "no" / "d.jsonl", "--from", "replay")
    assert "No such file" in await refused(tmp_path / "d.jsonl", "--from", f"file:{tmp_path}/none.csv")
    assert "no bar since 2030" in await refused(
        tmp_path / "d.jsonl", "--from", f"file:{path}", "--since", "2030-01-01", "--until", "2031-01-01"
    )
    monkeypatch.setenv("FORECAST_TICKERS", "QQQ")
    assert "has no QQQ" in await refused(tmp_path / "d.jsonl", "--from", f"file:{path}")
    assert "has no QQQ" in await refused(tmp_path / "d.jsonl", "--from", "replay")
    path.write_text(f"{path.read_text()}\nABC,2023-01-01,1,1,1,1,1", encoding="utf-8")
    assert "bars.csv line 162" in await refused(tmp_path / "d.jsonl", "--from", f"file:{path}")
    assert not (tmp_path / "d.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "elsewhere"], "is no source"),
        (["--from", "file:"], "is no source"),
        (["--limit", "0"], "is no number of cases"),
        (["--limit", "many"], "is no number of cases"),
        (["--since", "someday"], "is no moment"),
        (["--out", "cases.csv"], "ends in .jsonl"),
    ],
)
def test_bad_words_are_refused(tmp_path: Path, words: Sequence[str], said: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        options(tmp_path / "d.jsonl", *words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("there", "limit", "taken"),
    [
        ({"a": 10, "b": 10}, 10, {"a": 5, "b": 5}),
        ({"a": 2, "b": 10, "c": 10}, 10, {"a": 2, "b": 4, "c": 4}),
        ({"a": 10, "b": 10, "c": 10}, 11, {"a": 4, "b": 4, "c": 3}),
        ({"a": 0, "b": 3}, 10, {"a": 0, "b": 3}),
        ({"a": 5, "b": 5, "c": 5}, 2, {"a": 1, "b": 1, "c": 0}),
        ({"a": 0}, 3, {"a": 0}),
    ],
)
def test_shares_are_equal_as_far_as_they_can_be(there: dict[str, int], limit: int, taken: dict[str, int]) -> None:
    assert shares(there, limit=limit) == taken
