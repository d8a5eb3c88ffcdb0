"""The pages of prompts: what they read and say, and changes over the real routes of the api."""

import json
import shutil
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings, create_engine
from libs.keys import ALL_SCOPES, KeyRing
from libs.llm.activations import activate, history
from libs.llm.commands.plans import GUARDRAIL
from libs.llm.commands.turning import OTHER_GROUND
from libs.llm.in_force import Activation, Ground
from services.analytics.console.door.sessions import Session, Sessions
from services.analytics.console.house import House
from services.analytics.console.layout.frame import Console
from services.analytics.console.live import Live
from services.analytics.console.pages.prompts import words as prompt_words
from services.analytics.console.pages.prompts.changes import Wanted, answered, change
from services.analytics.console.pages.prompts.course import NOT_YET, found_course
from services.analytics.console.pages.prompts.foreseen import in_the_console, refusal
from services.analytics.console.pages.prompts.queries import (
    Standing,
    activations_of,
    from_files,
    standings,
    story_of,
    texts_of,
)
from tests.conformance.house import ROOT
from tests.fakes.engine import FakeEngine, Reply
from tests.integration.api_app import running, until


@dataclass(frozen=True, slots=True)
class Office:
    """A console before a running api, and somebody who may do everything."""

    console: Console
    session: Session
    engine: AsyncEngine

    async def policy(self) -> Standing:
        found = (await standings(self.console, self.session)).of("policy")
        assert found is not None
        return found

    async def pressed(self) -> Sequence[RowMapping]:
        async with self.engine.connect() as connection:
            return (await connection.execute(text("select * from presses order by id"))).mappings().all()


@pytest.fixture
async def office(
    monkeypatch: pytest.MonkeyPatch, database_url: str, engine: AsyncEngine, tmp_path: Path
) -> AsyncGenerator[Office, None]:
    for name in ("llm_prompts.yaml", "llm_prompts.lock"):
        shutil.copy(ROOT / "configs" / name, tmp_path / name)
    prompts = {"PROMPTS_FILE": str(tmp_path / "llm_prompts.yaml")}
    async with (
        FakeEngine(dialect="vllm", slots=2, reply=Reply("OK")) as fake,
        running(monkeypatch, database_url, fake.base_url, tmp_path / "state", **prompts) as stack,
    ):
        house = House(stack.http, api_url="http://api")
        keys = KeyRing.load(tmp_path / "state" / "keys.json")
        console = Console(engine, house, Sessions(keys), Live(engine, house))
        session = Session("ann", SecretStr(stack.token), frozenset(ALL_SCOPES), begun=0, seen=0)
        yield Office(console, session, engine)


async def test_what_is_pressed_is_done_told_and_kept(office: Office) -> None:
    assert (await office.policy()).by == "the file"
    refused = await change(office.console, office.session, Wanted("promote", "policy", version="1.1.0"))
    said = answered(refused)
    assert said.startswith("Nothing was done: no finished replay of policy 1.1.0")
    assert said.endswith("or say why it may go without: fill in Why")
    assert not [flag for flag in ("--reason", "REASON=") if flag in said]
    foreseen = await refusal(office.engine, "policy", "1.1.0", percent=None)
    assert f"Nothing was done: {foreseen}" == said, "what the api says is known before it is asked"
    ramped = await refusal(office.engine, "policy", "1.1.0", percent=10)
    assert ramped.endswith("or say why it may go without: fill in Why")
    ramp = Wanted("ramp", "policy", version="1.1.0", percent=10, reason="a first look")
    assert "now: policy: 1.0.0 in force, experiment per ticker and day" in answered(
        await change(office.console, office.session, ramp)
    )
    await change(office.console, office.session, ramp)
    on_trial = await until(office.policy, lambda found: bool(found.phase))
    assert on_trial.arms == "1.0.0 90 %, 1.1.0 10 %"
    assert await refusal(office.engine, "policy", "1.1.0", percent=5) == "", "less needs no reason"
    assert on_trial.by == "ann: ramped to 10 %: a first look (without a replay)"
    assert replace(on_trial, warnings=()) == (await from_files(office.engine)).of("policy"), "Postgres knows the same"
    await change(office.console, office.session, Wanted("rollback", "policy", reason="enough"))
    back = await until(office.policy, lambda found: not found.phase)
    assert (back.active, back.arms) == ("1.0.0", "")
    rows = list(prompt_words.history_rows(await activations_of(office.console, "policy")))
    assert [(row[1], row[2]) for row in rows] == [("1.0.0 alone", "ann"), ("1.0.0 90 %, 1.1.0 10 %", "ann")]

    pressed = await office.pressed()
    assert [(row["action"], row["subject"], row["reason"], row["key_name"]) for row in pressed] == [
        ("promote", "policy 1.1.0", "", "ann"),
        ("ramp", "policy 1.1.0 to 10 %", "a first look", "ann"),
        ("ramp", "policy 1.1.0 to 10 %", "a first look", "ann"),
        ("rollback", "policy", "enough", "ann"),
    ]
    assert pressed[0]["outcome"].startswith("409 no finished replay")
    assert [row["outcome"] for row in pressed[1:]] == ["200 done", "200 nothing to do", "200 done"]


async def test_without_the_api_files_and_postgres_are_shown(office: Office) -> None:
    async with httpx.AsyncClient() as client:
        console = replace(office.console, house=House(client, api_url="http://127.0.0.1:9"))
        found = await standings(console, office.session)
        told = await change(console, office.session, Wanted("rollback", "policy", reason="it stutters"))
    assert "does not answer" in found.problem
    assert found.keys == (await from_files(office.engine)).keys
    assert found.of("policy") is not None
    assert answered(told).startswith("It is not known whether this was done")
    assert [row["outcome"][:2] for row in await office.pressed()] == ["0 "]


async def test_without_postgres_nothing_is_called_certain(office: Office) -> None:
    nowhere = create_engine(
        DatabaseSettings(database_url=SecretStr("postgresql://x@127.0.0.1:9/x")), application="test"
    )
    found = await from_files(nowhere)
    await nowhere.dispose()
    policy = found.of("policy")
    assert policy is not None
    assert found.problem.endswith("so another version may be in force by now.")
    story = await story_of(office.console, office.session, policy)
    assert (policy.certain, story.problem) == (False, "It is not known whether an experiment runs.")


async def test_who_lacks_the_scope_sees_what_rules_and_changes_nothing(office: Office) -> None:
    reader = replace(office.session, scopes=frozenset({"read"}))
    found = await standings(office.console, reader)
    assert found.problem == ""
    assert [one.active for one in found.keys] == [one.active for one in (await from_files(office.engine)).keys]


async def test_the_report_of_the_jobs_is_shown_for_its_own_phase(office: Office) -> None:
    nothing = await story_of(office.console, office.session, await office.policy())
    assert (nothing.report, nothing.problem) == (None, "No experiment of policy runs.")
    ramp = Wanted("ramp", "policy", version="1.1.0", percent=10, reason="a first look")
    await change(office.console, office.session, ramp)
    standing = await until(office.policy, lambda found: bool(found.phase))
    asked = await story_of(office.console, office.session, standing)
    assert asked.made_at is None
    report = asked.report
    assert report is not None
    assert [row[:2] for row in prompt_words.arm_rows(report)] == [("1.0.0 (control)", "90"), ("1.1.0", "10")]
    assert {row[-1] for row in prompt_words.metric_rows(report)} == {"control", "not enough data"}
    assert [tone for tone, _ in prompt_words.ratio_lines(report)] == ["muted", "muted"]
    assert len(list(prompt_words.guardrail_rows(report))) == len(report["guardrails"])

    keep = text("insert into reports (name, content, took_ms) values ('experiment:policy', cast(:content as jsonb), 1)")
    async with office.engine.begin() as connection:
        await connection.execute(keep, {"content": json.dumps({**report, "sentence": "made by a job"})})
    story = await story_of(office.console, office.session, standing)
    assert story.report is not None
    assert (story.report["sentence"], story.made_at is None) == ("made by a job", False)
    later = await story_of(office.console, office.session, replace(standing, phase="activation-9"))
    assert later.made_at is None, "a report on another phase says nothing of this one"


async def test_what_an_experiment_found_stays_readable_when_it_has_ended(office: Office) -> None:
    ramp = Wanted("ramp", "policy", version="1.1.0", percent=10, reason="a first look")
    await change(office.console, office.session, ramp)
    running = await until(office.policy, lambda found: bool(found.phase))
    report = (await story_of(office.console, office.session, running)).report
    assert report is not None
    keep = text("insert into reports (name, content, took_ms) values (:name, cast(:content as jsonb), 1)")
    course: dict[str, Any] = {"phase": running.phase, "courses": []}
    async with office.engine.begin() as connection:
        for name, content in (("experiment:policy", report), ("course:policy", course)):
            await connection.execute(keep, {"name": name, "content": json.dumps(content)})
        await activate(
            connection,
            key="policy",
            version="1.0.0",
            arms=(),
            who=GUARDRAIL,
            why="too many invalid answers",
            ground=(await history(connection, "policy", limit=1))[0].ground,
            expected=(await history(connection, "policy", limit=1))[0].id,
        )
    standing = await until(office.policy, lambda found: not found.phase)
    story = await story_of(office.console, office.session, standing)
    assert (story.report, story.problem) == (report, "")
    assert "Below is the last one, ended at " in story.ended
    assert story.ended.endswith(" UTC by guardrail: too many invalid answers")
    found = await found_course(office.console, standing)
    assert found is not None
    assert (found.made is not None, found.ended) == (True, True)
    async with office.engine.begin() as connection:
        other = json.dumps({**report, "phase": "activation-99", "since": None})
        await connection.execute(
            text("update reports set content = cast(:other as jsonb) where name like 'exp%'"), {"other": other}
        )
    assert await found_course(office.console, standing) is None, "the course of another one says nothing of this one"


def test_what_ended_an_experiment_of_the_file_is_the_first_change_after_it_began() -> None:
    ground = Ground(file_version="1.0.0", file_experiment=None, env_arms=None)
    began = datetime(2026, 3, 2, tzinfo=UTC)
    rows = [
        Activation(number, "policy", "1.0.0", (), f"who {number}", "why", ground, began + timedelta(days=number - 2))
        for number in (4, 3, 1)
    ]
    report = {"phase": "file-0123abc", "since": began.isoformat()}
    assert prompt_words.ended_words(report, rows).endswith("ended at 2026-03-03 00:00:00 UTC by who 3: why")
    assert prompt_words.ended_words(report, rows[2:]).endswith("the file or the environment ended it.")
    assert prompt_words.ended_words({**report, "since": None}, rows).endswith("ended it.")


def test_every_flag_of_the_command_line_is_a_field_of_the_form() -> None:
    again = 'say why it may go again with --reason "…" (make: REASON="…")'
    assert in_the_console(again) == "say why it may go again: fill in Why"
    assert in_the_console("To go back one more step: --further (make: FURTHER=1)") == (
        "To go back one more step, tick the box beside Roll back"
    )
    assert in_the_console('To give another one: promote policy VERSION --reason "…"; there are 1.0.0') == (
        "To give another one: promote it here, with a reason under Why; there are 1.0.0"
    )
    assert in_the_console(OTHER_GROUND).endswith("it is meant all the same: fill in Why")


async def test_how_it_went_is_shown_for_its_own_phase_and_says_when_it_is_old(office: Office) -> None:
    standing = replace(await office.policy(), phase="activation-3")
    assert await found_course(office.console, replace(standing, phase="")) is None
    assert await found_course(office.console, replace(standing, certain=False)) is None
    before = await found_course(office.console, standing)
    assert before is not None
    assert (before.made, before.problem) == (None, NOT_YET)
    keep = text(
        "insert into reports (name, content, took_ms, made_at) values ('course:policy', cast(:content as jsonb), 1, "
        "clock_timestamp() - make_interval(mins => 6))"
    )
    async with office.engine.begin() as connection:
        await connection.execute(keep, {"content": json.dumps({"phase": "activation-3", "courses": []})})
    found = await found_course(office.console, standing)
    assert found is not None
    assert found.made is not None
    assert (found.made.late, found.problem) == (True, "")
    other = await found_course(office.console, replace(standing, phase="activation-4"))
    assert other is not None
    assert other.made is None, "how another phase went says nothing of this one"


def test_a_share_s_interval_ends_at_nothing_and_at_all() -> None:
    assert prompt_words.interval({"low": -0.02, "high": 1.01}, "rate") == "0.00 to 100.00 %"
    assert prompt_words.interval({"low": -0.02, "high": 0.01}, "rate", signed=True) == "-2.00 to +1.00 points"


def test_an_alarm_and_figures_are_in_words() -> None:
    ratios = {"assigned": {"p_value": 0.00012, "alarm": True}, "settled": {"p_value": 0.4, "alarm": False}}
    (bad, alarm), (good, _) = prompt_words.ratio_lines({"sample_ratio": ratios})
    assert (bad, good) == ("bad", "good")
    assert "chance is no explanation (p = 0.00012). No figure below can be trusted." in alarm
    assert prompt_words.number(0.0123, "rate", signed=True) == "+1.23 points"
    assert prompt_words.interval({"low": 10.0, "high": 12.5}, "milliseconds") == "10 to 12.5 ms"
    assert prompt_words.interval({"low": None, "high": 1.0}, "rate") == ""


async def test_texts_and_their_difference(office: Office) -> None:
    found = await texts_of("policy", "1.0.0", "1.1.0")
    assert (found.old.version, found.new.version) == ("1.0.0", "1.1.0")
    tones = {tone for tone, _ in prompt_words.marked(found.lines)}
    assert tones == {"good", "bad", "muted", "plain"}
