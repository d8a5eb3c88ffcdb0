"""The gate's page: what it reads and says, and its switches over the real routes of the api."""

from datetime import timedelta
from pathlib import Path
from typing import get_args

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.keys import KeyRing, Scope
from libs.shadow import shadow_of
from libs.switches import LONGEST_MINUTES, Standing, Switch, standing
from services.analytics.console.door.sessions import Session, Sessions
from services.analytics.console.house import House
from services.analytics.console.layout.frame import Console, Visitor
from services.analytics.console.live import Live
from services.analytics.console.pages.gate import page as gate
from services.analytics.console.pages.gate import queries as gate_queries
from services.analytics.console.pages.gate.switches import KILL, POLICY, SWITCHES, amiss, turn, who
from services.analytics.console.pages.gate.words import by_reason, by_version, fates
from services.analytics.console.reports import made
from services.api.strategist import switches
from services.jobs.reports import REPORTS, make_reports
from tests.integration.strategist_app import Desk, desk_of
from tests.integration.test_analytics_shadow import DAY0, MANY, NOW, entered, fill


class Office:
    """A console before the api's own routes."""

    def __init__(self, engine: AsyncEngine, folder: Path) -> None:
        self.desk: Desk = desk_of([switches.router], engine, folder)
        self.keys = KeyRing.load(folder / "keys.json")
        self._engine = engine

    def console(self, client: httpx.AsyncClient | None = None) -> Console:
        house = House(client or self.desk.http, api_url="http://api")
        return Console(self._engine, house, Sessions(self.keys), Live(self._engine, house))

    def visitor(self, scope: Scope) -> Visitor:
        token = self.desk.keys[scope]
        return Visitor(Session(f"has-{scope}", SecretStr(token), frozenset({scope}), begun=0, seen=0), "cookie")

    async def stands(self, name: Switch) -> Standing:
        async with self._engine.connect() as connection:
            return next(stand for stand in await standing(connection) if stand.name == name)

    async def pressed(self) -> RowMapping:
        async with self._engine.connect() as connection:
            return (await connection.execute(text("select * from presses"))).mappings().one()


@pytest.fixture
def office(engine: AsyncEngine, tmp_path: Path) -> Office:
    return Office(engine, tmp_path)


async def test_a_press_turns_the_kill_switch_and_is_kept(office: Office) -> None:
    before = await office.stands("ORDER_GATE_DISABLED")
    assert who(before) == "by default: nobody has turned it yet"
    told = await turn(
        office.console(), office.visitor("switch"), KILL, value=True, reason="the model raves", minutes=20
    )
    assert told.good
    after = await office.stands("ORDER_GATE_DISABLED")
    assert after.value is True
    assert after.set_at is not None
    assert after.expires_at == after.set_at + timedelta(minutes=20)
    assert who(after).startswith("by has-switch (key has-switch) at ")
    assert who(after).endswith(" UTC: the model raves")
    row = await office.pressed()
    assert (row["key_name"], row["action"], row["reason"], row["outcome"]) == (
        "has-switch", "switch", "the model raves", "200 done",
    )  # fmt: skip
    assert row["subject"] == "ORDER_GATE_DISABLED=true for 20 minutes"


async def test_the_policy_is_let_act_without_minutes(office: Office) -> None:
    told = await turn(office.console(), office.visitor("switch"), POLICY, value=False, reason="go live", minutes=None)
    assert told.good
    assert (await office.stands("LLM_SHADOW_MODE")).value is False
    assert (await office.pressed())["subject"] == "LLM_SHADOW_MODE=false"


async def test_a_key_without_the_scope_turns_nothing_and_its_press_is_kept(office: Office) -> None:
    told = await turn(office.console(), office.visitor("read"), KILL, value=True, reason="try", minutes=5)
    assert told.status == 403
    assert (await office.stands("ORDER_GATE_DISABLED")).value is False
    assert (await office.pressed())["outcome"].startswith("403 ")


async def test_an_api_that_is_away_is_said_and_the_press_is_kept(office: Office, unused_tcp_port: int) -> None:
    async with httpx.AsyncClient(base_url="http://api", transport=httpx.AsyncHTTPTransport(proxy=None)) as client:
        console = office.console(client)
        console.house.api_url = f"http://127.0.0.1:{unused_tcp_port}"
        told = await turn(console, office.visitor("switch"), KILL, value=True, reason="try", minutes=5)
    assert "does not answer" in told.problem
    assert (await office.pressed())["outcome"].startswith("0 the api at http://127.0.0.1")


def test_what_permits_more_asks_a_second_time() -> None:
    assert {switch.name for switch in SWITCHES} == set(get_args(Switch))
    asks = {(switch.name, way.value): bool(way.confirm) for switch in SWITCHES for way in switch.ways}
    assert asks == {
        ("LLM_SHADOW_MODE", True): True, ("LLM_SHADOW_MODE", False): False,
        ("ORDER_GATE_DISABLED", True): True, ("ORDER_GATE_DISABLED", False): False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "minutes", "words"),
    [
        ("  ", None, "say why"),
        ("why", 0, "whole minutes"),
        ("why", LONGEST_MINUTES + 1, "whole minutes"),
        ("why", 2.5, "whole minutes"),
    ],
)
def test_a_form_that_lacks_something_does_nothing(reason: str, minutes: float | None, words: str) -> None:
    assert words in amiss(reason, minutes)
    assert amiss("why", None) == amiss("why", 15.0) == ""


async def test_the_page_says_what_is_away(office: Office) -> None:
    console = office.console()
    assert gate.amiss(console) == ()
    console.live.say("database", "bad", "no way there")
    console.live.say("api", "bad", "the api does not answer")
    database, api = gate.amiss(console)
    assert database.startswith("Postgres does not answer, seen since")
    assert "no way there" in database
    assert api.startswith("The api does not answer (seen since")
    assert "A press here is tried all the same" in api
    console.live.heard()
    assert len(gate.amiss(console)) == 1


async def test_a_verdict_names_the_rule_that_denied(engine: AsyncEngine) -> None:
    await entered(engine, "RULE_DENY", "LIMIT_QTY", at=NOW, verdict="deny")
    await entered(engine, "POLICY_DENY", at=NOW)
    named = text("update gate_verdicts set payload = :payload where 'RULE_DENY' = any(reasons)")
    async with engine.begin() as connection:
        await connection.execute(text("set local session_replication_role = replica"))
        await connection.execute(named, {"payload": '{"decision": {"rules_reasons": ["DISPERSION", "COVERAGE"]}}'})
        rows = await gate_queries.newest(connection)
    assert [gate.reasons_of(dict(row)) for row in rows] == [
        "POLICY_DENY",
        "RULE_DENY (DISPERSION, COVERAGE), LIMIT_QTY",
    ]


async def test_verdicts_are_counted_by_reason_and_the_newest_come_first(engine: AsyncEngine) -> None:
    await entered(engine, at=NOW - timedelta(hours=gate_queries.HOURS, minutes=5), ticker="OLD")
    await entered(engine, "RULE_DENY", "POLICY_DENY", at=NOW)
    await entered(engine, "RULE_DENY", "LIMIT_QTY", at=NOW, verdict="deny", ticker="NEW")
    async with engine.connect() as connection:
        found = await gate_queries.lately(connection)
        rows = await gate_queries.newest(connection)
    counts = {each.reason: (each.verdicts, each.refused, each.would_refuse) for each in found.by_reason}
    assert counts == {"RULE_DENY": (2, 1, 2), "POLICY_DENY": (1, 0, 1), "LIMIT_QTY": (1, 1, 1)}
    assert found.by_reason[0].reason == "RULE_DENY"
    assert (found.total.verdicts, found.total.refused, found.cut) == (2, 1, False)
    assert [row["ticker"] for row in rows] == ["NEW", "AAPL", "OLD"]


async def test_both_are_read_by_index_however_long_the_history_is(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(MANY, {"newest": NOW, "day": DAY0})
    async with engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("analyze"))
        for statement, asked, index in (
            (gate_queries.LATELY, {"hours": 6, "most": 10_000}, "gate_verdicts_at"),
            (gate_queries.NEWEST, {"most": 50}, "gate_verdicts_pkey"),
        ):
            plan = "\n".join((await connection.scalars(text(f"explain {statement.text}"), asked)).all())
            assert index in plan
            assert "Seq Scan on gate_verdicts" not in plan


async def test_the_report_is_read_as_it_was_made(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await made(connection, "shadow") is None
    await make_reports(engine, REPORTS)
    async with engine.begin() as connection:
        new = await made(connection, "shadow")
        await connection.execute(text("update reports set made_at = made_at - interval '1 hour'"))
        old = await made(connection, "shadow")
    assert new is not None
    assert old is not None
    assert (new.late, old.late) == (False, True)
    assert new.content["entries"] == 0


async def test_the_tables_say_what_the_report_says(engine: AsyncEngine) -> None:
    await fill(engine, days=10)
    await entered(engine, "LIMIT_QTY", day=1, realised=50, verdict="deny", ticker="IBM")
    async with engine.connect() as connection:
        report = await shadow_of(connection, since=NOW - timedelta(days=30), until=NOW, ticker=None)
    allowed, blocked, apart, refused = (
        [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in fates(report)
    )
    assert allowed[:4] == ["lets through", "30", "30", "0"]
    assert allowed[4].startswith("+3.00 (+2.")
    assert allowed[6] == "+900.00"
    assert blocked[4].startswith("\N{MINUS SIGN}2.00 (\N{MINUS SIGN}2.")
    assert blocked[6] == "\N{MINUS SIGN}600.00"
    assert apart[4] == "+5.00 (+5.00 to +5.00) points"
    assert refused[1] == "1"
    assert [row[:3] for row in by_version(report)] == [("1.0.0", "\N{EN DASH}", "30")]
    assert [(row[0], row[-1]) for row in by_reason(report)] == [
        ("POLICY_DENY", "The model denied."), ("LIMIT_QTY", "The quantity exceeds MAX_ORDER_QTY."),
    ]  # fmt: skip
