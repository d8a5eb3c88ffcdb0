"""Guardrails on a real Postgres: a bad version is taken back once, by one of many, never against a person's word."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from libs.db.engine import DatabaseSettings, create_engine
from libs.exposures import phases
from libs.exposures.counts import unit_counts
from libs.exposures.looks import counted
from libs.exposures.record import note, note_judged
from libs.llm.activations import Activation, activate, history, latest
from libs.llm.in_force import InForce
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.upstreams.errors import PromptTooLong
from services.jobs.guardrails import EVERY_S, LATELY_MIN, LOOKS_PER_COUNT, Guardrails
from tests.unit import judgement_cases
from tests.unit.llm_cases import write_prompts

PROMPTS = """
policy:
  version: "1.0.0"
  experiment: {arms: {"1.0.0": 60, "1.1.0": 20, "1.2.0": 20}, unit: ticker_day, guardrails: {p95_latency_ms: 1000}}
  versions:
    "1.0.0": &policy
      user_template: "May we enter {{ ticker }}?"
      inputs: {type: object, properties: {ticker: {type: string}}}
    "1.1.0": {<<: *policy, user_template: "{{ ticker }}: may we?"}
    "1.2.0": {<<: *policy, user_template: "{{ ticker }}: yes?"}
note:
  version: "1.0.0"
  versions:
    "1.0.0": *policy
"""

GIVE = text(
    """
    insert into exposures (key, forecast_id, phase, unit, arm, feed, ticker, horizon, as_of, side, judged_at, status,
      timed_out, cached, total_ms, tokens, allow, rules_allow, settled_at, realised_return)
    select 'policy', gen_random_uuid(), :phase, :arm || ':' || cast(:batch as text) || ':' || i, :arm, 'f', 'T', '1d',
      '2026-01-02', 'buy', case when cast(:status as text) is not null then now() end, :status,
      :timed_out, :cached, :ms, 100, :allow, true, case when :settled then now() end, 0.01
    from generate_series(1, :count) as i
    """
)


TENS = text(
    """
    update exposures set unit = arm || status || number / 10
    from (
      select forecast_id as id, row_number() over (partition by arm, status) - 1 as number from exposures
    ) as numbered where forecast_id = id
    """
)


@dataclass(frozen=True, slots=True)
class Came:
    """What comes of exposures."""

    status: str | None = "ok"
    timed_out: bool = False
    ms: float | None = 200.0
    allow: bool | None = False
    settled: bool = False
    cached: bool = False


@dataclass(slots=True)
class Source:
    """Prompts that change."""

    now: Prompts


GOOD = Came()
INVALID = Came("invalid", allow=None)
LATE = Came("unavailable", timed_out=True, ms=20_000.0, allow=None)
SLOW = Came(ms=4_000.0)
LETS = Came(allow=True)
AWAY = Came("unavailable", ms=0.0, allow=None)


@pytest.fixture
async def second(database_url: str) -> AsyncIterator[AsyncEngine]:
    """The engine of another process."""
    made = create_engine(DatabaseSettings(database_url=SecretStr(database_url)), application="other")
    yield made
    await made.dispose()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    path = write_prompts(tmp_path, PROMPTS)
    return Registry.load(path, path.with_suffix(".lock"))


async def give(engine: AsyncEngine, arm: str, *, count: int, came: Came = GOOD, phase: str) -> None:
    values = {"arm": arm, "count": count, "phase": phase, "batch": str(uuid4()), "status": came.status, "ms": came.ms}
    values |= {"timed_out": came.timed_out, "allow": came.allow, "settled": came.settled, "cached": came.cached}
    async with engine.begin() as connection:
        await connection.execute(GIVE, values)


def phase_of(prompts: Prompts) -> str:
    experiment = prompts.in_force["policy"].experiment
    assert experiment is not None
    return experiment.phase


async def all_rows(engine: AsyncEngine) -> list[Activation]:
    async with engine.connect() as connection:
        return await history(connection, "policy")


async def read(engine: AsyncEngine, registry: Registry, buckets: str = "") -> Prompts:
    """What a process has in force once it has looked."""
    async with engine.connect() as connection:
        return Prompts.build(registry, buckets, activations=await latest(connection))


async def alerts(engine: AsyncEngine) -> list[tuple[str, str]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text("select kind, text from alerts order by id"))]


async def by_hand(engine: AsyncEngine, found: InForce, **changes: Any) -> Activation:
    """A person's word."""
    said: dict[str, Any] = {"version": "1.1.0", "arms": (), "who": "ann", "why": "I looked at it"} | changes
    async with engine.begin() as connection:
        made = await activate(connection, key="policy", ground=found.ground, **said)
    assert made is not None
    return made


async def planted(engine: AsyncEngine, prompts: Prompts, came: Came = INVALID, count: int = 40) -> None:
    """A bad 1.2.0 beside two versions that are well."""
    await give(engine, "1.0.0", count=3 * count, phase=phase_of(prompts))
    await give(engine, "1.1.0", count=count, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=count, came=came, phase=phase_of(prompts))


@pytest.mark.parametrize(
    ("came", "name"),
    [
        (INVALID, "invalid_rate"),
        (LATE, "timeout_rate"),
        (SLOW, "p95_latency_ms"),
        (LETS, "deny_to_allow"),
    ],
)
async def test_what_breaks_a_guardrail_is_taken_back_and_its_share_goes_to_the_active_version(
    engine: AsyncEngine, registry: Registry, came: Came, name: str
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts, came)
    with capture_logs() as logs:
        await Guardrails(engine, prompts).step()
    (made,) = await all_rows(engine)
    assert (made.who, made.version, made.arms) == ("guardrail", "1.0.0", (("1.0.0", 80.0), ("1.1.0", 20.0)))
    assert made.why.startswith(f"1.2.0, {name}: ")
    told = next(line for line in logs if line["event"] == "guardrail_took_back")
    assert (told["prompt_key"], told["versions"], told["arms"]) == ("policy", ["1.2.0"], "1.0.0@80,1.1.0@20")
    ((kind, words),) = await alerts(engine)
    assert kind == "guardrail"
    assert "version 1.2.0 was taken back and 1.0.0 is given instead" in words
    assert name in words
    after = await read(engine, registry)
    assert after.in_force["policy"].source == "activation"
    assert phase_of(after) == f"activation-{made.id}"


async def test_two_processes_that_see_it_at_once_take_it_back_once(
    engine: AsyncEngine, second: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts)
    looking = [Guardrails(each, prompts) for each in (engine, second) for _ in range(4)]
    made = await asyncio.gather(*(each.take_back("policy", prompts.in_force["policy"]) for each in looking))
    assert sum(each is not None for each in made) == 1
    assert len(await all_rows(engine)) == 1
    assert len(await alerts(engine)) == 1
    for each in looking:  # and with what they knew before, they do not do it again
        await each.step()
    assert len(await all_rows(engine)) == 1
    assert len(await alerts(engine)) == 1


async def test_once_it_is_read_nothing_more_is_done(engine: AsyncEngine, registry: Registry) -> None:
    before = Prompts.build(registry)
    await planted(engine, before)
    await Guardrails(engine, before).step()
    after = await read(engine, registry)
    await give(engine, "1.2.0", count=40, came=INVALID, phase=phase_of(before))  # calls that were on their way
    await Guardrails(engine, after).step()
    assert len(await all_rows(engine)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1.1.0", "arms": ()},
        {"version": "1.0.0", "arms": (("1.0.0", 60.0), ("1.2.0", 40.0))},
        {"version": "1.2.0", "arms": ()},
    ],
)
async def test_a_persons_word_in_between_stands(
    engine: AsyncEngine, registry: Registry, change: dict[str, Any]
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts)
    said = await by_hand(engine, prompts.in_force["policy"], **change)
    assert await Guardrails(engine, prompts).take_back("policy", prompts.in_force["policy"]) is None
    assert [row.id for row in await all_rows(engine)] == [said.id]
    assert await alerts(engine) == []


async def test_a_person_and_a_guardrail_at_the_same_moment_wait_for_each_other(
    engine: AsyncEngine, second: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts)
    found = prompts.in_force["policy"]
    async with second.begin() as connection:
        said = await activate(
            connection, key="policy", version="1.1.0", arms=(), who="ann", why="mine", ground=found.ground
        )
        assert said is not None
        late = asyncio.create_task(Guardrails(engine, prompts).take_back("policy", found))
        await asyncio.wait({late}, timeout=0.3)
        assert not late.done()
    assert await late is None
    assert [row.id for row in await all_rows(engine)] == [said.id]


async def test_after_a_persons_word_the_new_phase_is_judged_by_its_own_exposures(
    engine: AsyncEngine, registry: Registry
) -> None:
    before = Prompts.build(registry)
    await planted(engine, before)
    arms = (("1.0.0", 50.0), ("1.2.0", 50.0))
    said = await by_hand(engine, before.in_force["policy"], version="1.0.0", arms=arms)
    again = await read(engine, registry)
    await Guardrails(engine, again).step()
    assert [row.id for row in await all_rows(engine)] == [said.id]
    await give(engine, "1.0.0", count=30, phase=phase_of(again))
    await give(engine, "1.2.0", count=30, came=INVALID, phase=phase_of(again))
    await Guardrails(engine, again).step()
    (made, kept) = await all_rows(engine)
    assert (made.who, made.version, made.arms, kept.id) == ("guardrail", "1.0.0", (), said.id)
    assert (await read(engine, registry)).in_force["policy"].experiment is None


async def test_the_arms_of_the_environment_are_taken_back_too(engine: AsyncEngine, registry: Registry) -> None:
    buckets = "policy:1.0.0@50,1.2.0@50"
    prompts = Prompts.build(registry, buckets)
    await give(engine, "1.0.0", count=30, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=30, came=INVALID, phase=phase_of(prompts))
    await Guardrails(engine, prompts).step()
    found = (await read(engine, registry, buckets)).in_force["policy"]
    assert (found.source, found.version, found.experiment) == ("activation", "1.0.0", None)


@pytest.mark.parametrize("came", [INVALID, LATE, SLOW, AWAY])
async def test_what_all_arms_suffer_takes_none_back(engine: AsyncEngine, registry: Registry, came: Came) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts, GOOD)
    for arm, count in (("1.0.0", 90), ("1.1.0", 30), ("1.2.0", 30)):
        await give(engine, arm, count=count, came=came, phase=phase_of(prompts))
    await Guardrails(engine, prompts).step()
    assert await all_rows(engine) == []


async def test_a_model_that_is_away_blames_nobody_even_where_it_hits_one_arm_only(
    engine: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts, AWAY)
    await Guardrails(engine, prompts).step()
    assert await all_rows(engine) == []


async def test_nothing_runs_so_nothing_is_done(engine: AsyncEngine, registry: Registry) -> None:
    prompts = Prompts.build(registry, "policy:1.0.0")
    await give(engine, "1.2.0", count=40, came=INVALID, phase=phase_of(prompts))
    with capture_logs() as logs:
        await Guardrails(engine, prompts).step()
    assert (await all_rows(engine), logs) == ([], [])


async def test_shares_that_chance_does_not_explain_are_told_once_for_each_check(
    engine: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    phase = phase_of(prompts)
    settled = Came(settled=True)
    for arm, count in (("1.0.0", 300), ("1.1.0", 100), ("1.2.0", 100)):
        await give(engine, arm, count=count, came=settled, phase=phase)
    looking = Guardrails(engine, prompts)
    await looking.step()
    assert await alerts(engine) == []
    await give(engine, "1.2.0", count=300, came=Came(), phase=phase)  # too many, and their outcome never comes
    for _ in range(LOOKS_PER_COUNT * 2):
        await looking.step()
    ((kind, words),) = await alerts(engine)
    assert kind == "sample_ratio"
    assert f"at assignment the arms of {phase} do not have the shares" in words
    await give(engine, "1.0.0", count=900, came=settled, phase=phase)
    for each in (looking, Guardrails(engine, prompts)):  # the other one is a process that started anew
        for _ in range(LOOKS_PER_COUNT + 1):
            await each.step()
    said = await alerts(engine)
    assert [kind for kind, _ in said] == ["sample_ratio", "sample_ratio"]
    assert "at outcome" in said[1][1]
    assert await all_rows(engine) == []


async def test_counts_are_by_arm_and_leave_out_what_nobody_is_to_blame_for(
    engine: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    phase = phase_of(prompts)
    waiting = Came(status=None, ms=None, allow=None)
    for came in (GOOD, GOOD, INVALID, LATE, SLOW, LETS, AWAY, waiting, Came("skipped", ms=None, allow=None)):
        await give(engine, "1.2.0", count=1, came=came, phase=phase)
    await give(engine, "1.0.0", count=5, phase=phase)
    await give(engine, "1.2.0", count=7, came=INVALID, phase="another")
    experiment = prompts.in_force["policy"].experiment
    assert experiment is not None
    async with engine.connect() as connection:
        counts = await counted(connection, "policy", experiment)
        units = await unit_counts(connection, "policy", phase)
    mine = counts["1.2.0"]
    assert (mine.judged, mine.invalid, mine.timed_out) == (6, 1, 1)
    assert (mine.answered, mine.slow, mine.decided, mine.allowed) == (5, 1, 5, 1)
    assert (counts["1.0.0"].judged, counts["1.0.0"].decided, counts["1.0.0"].allowed) == (5, 5, 0)
    assert (units["1.2.0"].assigned, units["1.2.0"].settled) == (9, 0)
    assert mine.units == {}  # 20 points are allowed and the arms are not further apart, so units are not counted


async def kept(engine: AsyncEngine, arm: str, count: int, *, phase: str) -> None:
    """Valid answers from the reply cache."""
    await give(engine, arm, count=count, came=replace(GOOD, cached=True), phase=phase)


@pytest.mark.parametrize(("came", "asked"), [(LATE, 20), (INVALID, 20), (INVALID, 100), (SLOW, 100)])
async def test_what_all_arms_suffer_is_seen_though_the_control_has_answers_from_before(
    engine: AsyncEngine, registry: Registry, came: Came, asked: int
) -> None:
    """What is really asked fails at the same rate in both; only the control was asked before."""
    prompts = Prompts.build(registry, "policy:1.0.0@90,1.2.0@10")
    await kept(engine, "1.0.0", 900, phase=phase_of(prompts))
    for arm, count in (("1.0.0", 2 * asked), ("1.2.0", asked)):
        await give(engine, arm, count=count * 17 // 20 if asked > 20 else 0, phase=phase_of(prompts))
        await give(engine, arm, count=count * 3 // 20 if asked > 20 else count, came=came, phase=phase_of(prompts))
    await Guardrails(engine, prompts).step()
    assert await all_rows(engine) == []


async def test_answers_from_before_do_not_hide_a_candidate_that_fails_now(
    engine: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry, "policy:1.0.0@50,1.2.0@50")
    for arm in ("1.0.0", "1.2.0"):
        await kept(engine, arm, 1000, phase=phase_of(prompts))
        await give(engine, arm, count=50, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=50, came=LATE, phase=phase_of(prompts))
    await Guardrails(engine, prompts).step()
    (made,) = await all_rows(engine)
    assert made.why.startswith("1.2.0, timeout_rate: 50 of 100 calls")


async def test_a_version_that_can_never_be_asked_is_taken_back(engine: AsyncEngine, registry: Registry) -> None:
    prompts = Prompts.build(registry, "policy:1.0.0@50,1.2.0@50")
    await give(engine, "1.0.0", count=30, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=30, came=Came(None, ms=None, allow=None), phase=phase_of(prompts))
    refused = judgement_cases.answer(
        "policy", None, arm="1.2.0", status="unavailable", error=f"{PromptTooLong.code}: 9,000 tokens", total_ms=1.0
    )
    async with engine.begin() as connection:
        ids = list(await connection.scalars(text("select forecast_id from exposures where arm = '1.2.0'")))
        asked = [note("policy", each, answer=refused) for each in ids[:15]]
        broken = [note("policy", each, answer=None, fault="InputsRefused: no ticker") for each in ids[15:]]
        await note_judged(connection, [one for one in (*asked, *broken) if one is not None])
    await Guardrails(engine, prompts).step()
    (made,) = await all_rows(engine)
    assert made.why.startswith("1.2.0, invalid_rate: 30 of 30 answers were invalid")
    experiment = prompts.in_force["policy"].experiment
    assert experiment is not None
    async with engine.connect() as connection:
        counts = await counted(connection, "policy", experiment)
    assert (counts["1.2.0"].judged, counts["1.2.0"].answered, counts["1.2.0"].slow) == (30, 0, 0)


async def test_what_breaks_at_one_key_is_raised_after_the_others_were_looked_at(
    engine: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts)
    bad = prompts.in_force["policy"]
    assert bad.experiment is not None
    broken = replace(bad, experiment=replace(bad.experiment, guardrails={"p95_latency_ms": "no number"}))
    both = replace(prompts, in_force={"a": broken, "policy": bad})
    looking = Guardrails(engine, both)
    with capture_logs() as logs, pytest.raises(DBAPIError):
        await looking.step()
    assert [(line["prompt_key"], line["log_level"]) for line in logs if line["event"] == "guardrails_failed"] == [
        ("a", "error")
    ]
    assert [row.who for row in await all_rows(engine)] == ["guardrail"]
    with capture_logs() as logs, pytest.raises(DBAPIError):
        await looking.step()
    assert not [line for line in logs if line["event"] == "guardrails_failed"]  # the same is said once


async def test_an_activation_that_cannot_be_followed_here_stands(engine: AsyncEngine, registry: Registry) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts)
    said = await by_hand(engine, prompts.in_force["policy"], version="1.3.0")
    here = await read(engine, registry)
    assert here.in_force["policy"].trouble is not None
    looking = Guardrails(engine, here)
    with capture_logs() as logs:
        for _ in range(3):
            await looking.step()
    assert [line["event"] for line in logs] == ["guardrails_off"]
    assert "1.3.0" in logs[0]["reason"]
    assert [row.id for row in await all_rows(engine)] == [said.id]


async def test_outcomes_that_come_after_all_units_are_checked_too(engine: AsyncEngine, registry: Registry) -> None:
    prompts = Prompts.build(registry, "policy:1.0.0@50,1.2.0@50")
    for arm in ("1.0.0", "1.2.0"):
        await give(engine, arm, count=100, phase=phase_of(prompts))  # every unit there is, from the first day on
    looking = Guardrails(engine, prompts)
    await looking.step()
    async with engine.begin() as connection:
        await connection.execute(text("update exposures set settled_at = now() where arm = '1.0.0'"))
    for _ in range(LOOKS_PER_COUNT):
        await looking.step()
    ((kind, words),) = await alerts(engine)
    assert kind == "sample_ratio"
    assert "at outcome" in words


async def test_one_unit_that_fails_again_and_again_is_one_failure(engine: AsyncEngine, registry: Registry) -> None:
    prompts = Prompts.build(registry, "policy:1.0.0@50,1.2.0@50")
    await give(engine, "1.0.0", count=200, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=170, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=30, came=INVALID, phase=phase_of(prompts))
    async with engine.begin() as connection:
        await connection.execute(TENS)  # three units of twenty fail, each ten times
    looking = Guardrails(engine, prompts)
    await looking.step()
    assert await all_rows(engine) == []
    await give(engine, "1.2.0", count=100, came=INVALID, phase=phase_of(prompts))
    await looking.step()
    (made,) = await all_rows(engine)
    assert "by units they tell as much as" in made.why


async def test_an_experiment_that_is_not_in_force_here_is_told_once(engine: AsyncEngine, registry: Registry) -> None:
    here = Prompts.build(registry)
    there = Prompts.build(registry, "policy:1.0.0@50,1.2.0@50")
    looking = Guardrails(engine, here)
    for prompts in (here, there):
        await give(engine, "1.0.0", count=3, phase=phase_of(prompts))
    with capture_logs() as logs:
        for _ in range(2 * LOOKS_PER_COUNT):
            await looking.step()
        assert await alerts(engine) == []  # processes may still be starting
        for _ in range(int(2 * LATELY_MIN * 60 / EVERY_S)):
            await looking.step()
    ((kind, words),) = await alerts(engine)
    assert kind == "unguarded"
    assert f"by {phase_of(there)}, and services.jobs knows of {phase_of(here)}" in words
    assert [line["phase"] for line in logs if line["event"] == "experiment_not_in_force_here"] == [phase_of(there)]


async def test_a_phase_that_was_in_force_here_until_lately_is_no_stranger(
    engine: AsyncEngine, registry: Registry
) -> None:
    live = Source(Prompts.build(registry))
    await give(engine, "1.0.0", count=3, phase=phase_of(live.now))
    looking = Guardrails(engine, live)
    rounds = int(2 * LATELY_MIN * 60 / EVERY_S)
    for _ in range(rounds):
        await looking.step()
    live.now = Prompts.build(registry, "policy:1.0.0")
    for _ in range(rounds - 1):
        await looking.step()
    assert await alerts(engine) == []
    for _ in range(LOOKS_PER_COUNT + 1):
        await looking.step()
    assert [kind for kind, _ in await alerts(engine)] == ["unguarded"]


@pytest.mark.parametrize(
    ("buckets", "arms"),
    [
        ("", (("1.0.0", 60.0), ("1.1.0", 20.0), ("1.2.0", 20.0))),
        ("policy:1.0.0@50,1.2.0@50", (("1.0.0", 50.0), ("1.2.0", 50.0))),
    ],
)
async def test_of_what_was_taken_back_the_control_and_the_weights_are_still_known(
    engine: AsyncEngine, tmp_path: Path, registry: Registry, buckets: str, arms: tuple[tuple[str, float], ...]
) -> None:
    before = Prompts.build(registry, buckets)
    ended = before.in_force["policy"].experiment
    assert ended is not None
    await give(engine, "1.0.0", count=30, phase=ended.phase)
    await give(engine, "1.2.0", count=40, came=INVALID, phase=ended.phase)  # more than the control has
    await Guardrails(engine, before).step()
    plain = "".join(line for line in PROMPTS.splitlines(keepends=True) if "experiment:" not in line)
    path = write_prompts(tmp_path, plain)
    later = await read(engine, Registry.load(path, path.with_suffix(".lock")))  # and both say something else by now
    assert later.in_force["policy"].ground != before.in_force["policy"].ground
    for now in (await read(engine, registry, buckets), later):
        async with engine.connect() as connection:
            asked = await phases.find(connection, now, "policy", ended.phase)
        assert (asked.state, asked.weighted, asked.experiment) == ("ended", True, ended)
        assert asked.experiment.arms == arms


async def test_of_versions_that_are_gone_only_what_was_given_is_known(
    engine: AsyncEngine, tmp_path: Path, registry: Registry
) -> None:
    before = Prompts.build(registry)
    await planted(engine, before)
    await Guardrails(engine, before).step()
    plain = "".join(line for line in PROMPTS.splitlines(keepends=True) if "1.2.0" not in line)
    path = write_prompts(tmp_path, plain)
    now = await read(engine, Registry.load(path, path.with_suffix(".lock")))
    async with engine.connect() as connection:
        asked = await phases.find(connection, now, "policy", phase_of(before))
    assert (asked.weighted, asked.experiment.control) == (False, "1.0.0")
    assert len(asked.experiment.arms) == 3
