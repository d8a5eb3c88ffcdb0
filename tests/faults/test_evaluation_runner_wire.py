"""Asking items through the real client, rules and upstreams, against a model server that misbehaves."""

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.evaluation.running.asking import VersionChanged
from libs.evaluation.running.journal import Journal, latest_rows
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row
from libs.evaluation.running.runner import run
from libs.evaluation.running.work import Ended, Patience
from libs.llm.lock import HEADER
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.upstreams.types import TimeLimits
from tests.fakes.engine import FakeEngine, Fault
from tests.fakes.engine_replies import Reply
from tests.faults.evaluation_process import ROOT, Road, pinned, registry, road_to
from tests.unit.evaluation_running_cases import ManyCases, case_number, plan_of
from tests.unit.llm_cases import MemoryCache

ALLOW = '{"allow": true, "reasons": [], "flags": []}'
DENY = '{"allow": false, "reasons": ["LIQUIDITY"], "flags": ["WIDE_RANGE"]}'
PATIENCE = Patience(first_s=0.02, longest_s=0.2, give_up_s=30, leave_s=1)
SHORT = TimeLimits(connect_s=1, first_token_s=0.1, idle_s=0.1, total_s=3)


def nobody(row: Row) -> None:
    """Nobody looks."""


async def asked(road: Road, prompt: str = "policy", *, repeat: int = 0, **how: Any) -> Row:
    return await road.asking(**how)(case_number(3), pinned(prompt), item=3, repeat=repeat)


async def evaluated(road: Road, plan: Plan, folder: Path, **changes: Any) -> Ended:
    """Run a plan into a file of rows."""
    given: dict[str, Any] = {"ask": road.asking(), "seen": nobody, "patience": PATIENCE, "pace": None} | changes
    async with Journal(folder / "rows.jsonl", items=plan.items) as journal:
        return await run(
            plan,
            ManyCases(plan.cases),
            keep=journal.keep,
            skip=journal.done,
            places=road.places,
            stop=asyncio.Event(),
            **given,
        )


def rows_in(folder: Path) -> list[Row]:
    return list(latest_rows(folder / "rows.jsonl"))


async def test_a_row_says_what_model_and_rules_said() -> None:
    async with FakeEngine(reply=DENY, delay_s=0.03) as fake, road_to(fake.base_url) as road:
        row = await asked(road)
    assert (row.status, row.error, row.first_error, row.text) == ("ok", None, None, DENY)
    assert (row.allow, row.reasons, row.flags) == (False, ("LIQUIDITY",), ("WIDE_RANGE",))
    assert (row.rules_allow, row.rules_reasons, row.ungrounded) == (True, (), None)
    assert (row.item, row.case, row.ticker, row.day, row.side) == (3, "case-3", "T3", "2012-11-20", "buy")
    assert (row.target, row.made, row.won) == (True, 0.01, True)
    assert (row.prompt, row.version, row.hash) == ("policy", "1.0.0", pinned("policy").hash)
    assert row.total_ms >= row.first_token_ms >= 25
    assert (row.cached, row.late_ms, row.model) == (False, 0.0, "Lexi")
    assert row.tokens_in > 0
    assert row.tokens_out > 0
    assert len(row.call_id) == 36
    assert fake.requests[0]["priority"] == 9


async def test_numbers_of_a_rationale_that_stand_in_no_input_are_named() -> None:
    async with FakeEngine(reply="It may rise 12.34% on volume.") as fake, road_to(fake.base_url) as road:
        row = await asked(road, "rationale")
    assert (row.status, row.allow, row.ungrounded) == ("ok", None, ("12.34%",))


async def test_a_first_reply_that_had_to_be_repaired_is_told_apart() -> None:
    replies = iter(["maybe", ALLOW])
    async with FakeEngine(reply=lambda _: Reply(next(replies))) as fake, road_to(fake.base_url) as road:
        row = await asked(road)
    assert (row.status, row.allow, row.error) == ("ok", True, None)
    assert row.first_error is not None
    assert row.first_error.startswith("not_json: ")


async def test_a_reply_that_stays_invalid_says_its_kind() -> None:
    async with (
        FakeEngine(reply='{"allow": "false", "reasons": [], "flags": []}') as fake,
        road_to(fake.base_url) as road,
    ):
        row = await asked(road)
    assert (row.status, row.allow) == ("invalid", None)
    assert row.error is not None
    assert row.error.startswith("schema: ")
    assert row.text.startswith('{"allow": "false"')


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Fault.SILENT, "first_token_timeout"), (Fault.STALL, "idle_timeout"), (Fault.CUT, "broken_stream")],
)
async def test_no_answer_is_a_row_that_says_why(fault: Fault, code: str) -> None:
    async with FakeEngine(reply=ALLOW) as fake, road_to(fake.base_url) as road:
        fake.fault = fault
        row = await asked(road, limits=SHORT)
    assert row.status == "unavailable"
    assert row.error is not None
    assert row.error.startswith(code)
    assert (row.allow, row.text) == (None, "")


async def test_a_request_that_the_engine_refuses_is_refused() -> None:
    async with FakeEngine(reply=ALLOW) as fake, road_to(fake.base_url) as road:
        fake.fault, fake.fault_status = Fault.STATUS, 422
        row = await asked(road)
    assert row.status == "refused"


async def test_inputs_that_do_not_fit_the_prompt_are_refused() -> None:
    async with FakeEngine(reply=ALLOW) as fake, road_to(fake.base_url) as road:
        case = case_number(1)
        case = replace(case, inputs=replace(case.inputs, ticker="x" * 500))
        row = await road.asking()(case, pinned("policy"), item=0, repeat=0)
    assert row.status == "refused"
    assert row.error is not None
    assert row.error.startswith("InputsRefused: ")
    assert fake.requests == []


async def test_a_repeat_is_never_answered_from_the_cache() -> None:
    async with FakeEngine(reply=ALLOW) as fake, road_to(fake.base_url, cache=MemoryCache()) as road:
        rows = [await asked(road, use_cache=True, repeat=repeat) for repeat in (0, 0, 1, 2)]
        assert [row.cached for row in rows] == [False, True, False, False]
        assert not (await asked(road, use_cache=False)).cached
    assert len(fake.requests) == 4


async def test_another_models_answer_is_no_result(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        lexi = await stack.enter_async_context(FakeEngine(reply=ALLOW))
        other = await stack.enter_async_context(FakeEngine(reply=DENY, model="Other"))
        road = await stack.enter_async_context(road_to(lexi.base_url, other.base_url))
        await lexi.stop()
        ended = await evaluated(road, plan(3), tmp_path, patience=replace(PATIENCE, give_up_s=0.2))
    assert ended.done == 0
    assert ended.away is not None
    assert "answered_elsewhere: Other" in ended.away
    assert rows_in(tmp_path) == []


def plan(cases: int, **changes: Any) -> Plan:
    return plan_of(cases, versions=(pinned("policy"),), **changes)


async def test_a_server_that_goes_away_and_comes_back_costs_no_row(tmp_path: Path) -> None:
    async with FakeEngine(reply=ALLOW, delay_s=0.01) as fake, road_to(fake.base_url) as road:
        kept: list[Row] = []

        async def restart() -> None:
            await until_there(lambda: len(kept) >= 10)
            await fake.stop()
            await asyncio.sleep(0.5)
            await fake.start()

        restarting = asyncio.create_task(restart())
        ended = await evaluated(road, plan(300), tmp_path, seen=kept.append)
        await restarting
    assert (ended.done, ended.failed, ended.away) == (300, 0, None)
    assert ended.in_vain > 0
    assert ended.waited_s > 0
    assert sorted(row.item for row in rows_in(tmp_path)) == list(range(300))
    assert {row.status for row in rows_in(tmp_path)} == {"ok"}


async def until_there(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - rows come in a server's own time
        await asyncio.sleep(0.005)


async def test_timeouts_are_results_and_the_run_goes_on(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        said = "".join(message["content"] for message in body["messages"])
        return Reply(ALLOW, fault=Fault.SILENT if "T7 " in said else None)

    async with FakeEngine(reply=reply) as fake, road_to(fake.base_url) as road:
        ended = await evaluated(road, plan(20), tmp_path, ask=road.asking(limits=SHORT))
    assert (ended.done, ended.failed, ended.away) == (20, 1, None)
    assert [(row.item, row.status) for row in rows_in(tmp_path) if row.status != "ok"] == [(7, "unavailable")]


async def test_a_wrong_key_ends_the_run_without_a_row(tmp_path: Path) -> None:
    async with FakeEngine(reply=ALLOW) as fake, road_to(fake.base_url) as road:
        fake.api_key = "another"
        ended = await evaluated(road, plan(5), tmp_path, patience=replace(PATIENCE, give_up_s=0.2))
    assert ended.done == 0
    assert ended.away is not None
    assert rows_in(tmp_path) == []


class Edited:
    """Prompts that are the house's until they are edited."""

    def __init__(self) -> None:
        self.now = Prompts.build(registry())

    def edit(self, folder: Path, *, old: str, new: str) -> None:
        text = (ROOT / "configs" / "llm_prompts.yaml").read_text(encoding="utf-8")
        assert old in text
        path = folder / "edited.yaml"
        path.write_text(text.replace(old, new), encoding="utf-8")
        path.with_suffix(".lock").write_text(f"{HEADER}\n", encoding="utf-8")
        self.now = Prompts.build(Registry.load_quietly(path))


async def test_a_version_that_changes_under_the_run_ends_it(tmp_path: Path) -> None:
    prompts = Edited()
    async with FakeEngine(reply=ALLOW, delay_s=0.005) as fake, road_to(fake.base_url, prompts=prompts) as road:
        kept: list[Row] = []

        def seen(row: Row) -> None:
            kept.append(row)
            if len(kept) == 20:
                prompts.edit(tmp_path, old="May the desk enter", new="Should the desk enter")

        with pytest.raises(VersionChanged, match=r"policy 1\.0\.0 does not say any more what it said"):
            await evaluated(road, plan(500), tmp_path, seen=seen)
    assert 20 <= len(rows_in(tmp_path)) < 500
    assert {row.hash for row in rows_in(tmp_path)} == {pinned("policy").hash}


async def test_a_version_that_is_taken_out_ends_the_run() -> None:
    async with FakeEngine(reply=ALLOW) as fake, road_to(fake.base_url) as road:
        gone = replace(pinned("policy"), version="9.9.9")
        with pytest.raises(VersionChanged, match=r"policy 9\.9\.9 is not in the prompts' file any more"):
            await road.asking()(case_number(1), gone, item=0, repeat=0)


async def test_under_a_rate_waiting_behind_a_slow_server_is_seen(tmp_path: Path) -> None:
    """One slot, 20 ms each, and 40 questions planned within a fifth of a second: the last is answered no sooner than
    0.8 s after the first moment, and its row says so, whoever of us made it wait.
    """
    many = plan(40)
    chance = random.Random(many.seed)
    last_planned_s = sum(chance.expovariate(200) for _ in range(40))
    async with FakeEngine(reply=ALLOW, slots=1, delay_s=0.02, chunks=1) as fake, road_to(fake.base_url) as road:
        ended = await evaluated(road, many, tmp_path, pace=200)
    assert ended.done == 40
    slowest_s = max(row.late_ms + row.total_ms for row in rows_in(tmp_path)) / 1000
    assert slowest_s >= 40 * 0.019 - last_planned_s > 0.4
