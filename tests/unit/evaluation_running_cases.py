"""Plans, cases and rows for the tests of asking, small and by hand."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from libs.evaluation.cases.case import EvalCase, Realised
from libs.evaluation.running.plan import Dataset, Pinned, Plan
from libs.evaluation.running.row import Row
from tests.unit.judgement_cases import AS_OF, good_inputs

POLICY = Pinned("policy", "1.0.0", "a" * 64)
RATIONALE = Pinned("rationale", "1.0.0", "b" * 64)


def plan_of(cases: int, **changes: Any) -> Plan:
    """A plan over so many cases: one version of the policy, each case once."""
    plan = Plan(
        name="test",
        made_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        seed=7,
        repeat=1,
        versions=(POLICY,),
        cases=cases,
        cases_sha256="c" * 64,
        dataset=Dataset("cases.jsonl", "d" * 64, cases),
        concurrency=None,
        rate=None,
        cache=False,
        thresholds=(),
        rules_sha256="e" * 64,
        prices=None,
        workers=0,
        evaluation_id=UUID("019aa000-0000-7000-8000-000000000006"),
        stamp={},
    )
    return replace(plan, **changes)


def case_number(number: int) -> EvalCase:
    """One of any number of cases; each has a ticker of its own, so that no two ask the same."""
    return EvalCase(
        id=f"case-{number}",
        as_of=AS_OF,
        feed="replay:eval",
        inputs=good_inputs(ticker=f"T{number}"),
        target=True,
        realised=Realised(change=0.01, at=AS_OF + timedelta(days=1)),
    )


class ManyCases(Sequence[EvalCase]):
    """Cases made when they are looked at."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return case_number(index)

    def case(self, index: int) -> EvalCase:
        """As a file of cases gives it."""
        return case_number(index)


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds."""
    while not condition():  # noqa: ASYNC110 - what is waited for does not tell
        await asyncio.sleep(0.001)


def row_of_item(item: int, **changes: Any) -> Row:
    """A valid answer that allows."""
    row = Row(
        item=item,
        try_=1,
        case=f"case-{item}",
        twin="",
        twin_of="",
        attack="",
        ticker=f"T{item}",
        day="2012-11-20",
        as_of=AS_OF.isoformat(),
        prompt="policy",
        version="1.0.0",
        hash="a" * 64,
        repeat=0,
        status="ok",
        error=None,
        first_error=None,
        cached=False,
        text='{"allow": true, "reasons": [], "flags": []}',
        allow=True,
        reasons=(),
        flags=(),
        rules_allow=True,
        rules_reasons=(),
        ungrounded=None,
        side="buy",
        target=True,
        made=0.01,
        won=True,
        queue_ms=0.5,
        first_queue_ms=0.5,
        first_token_ms=20.0,
        total_ms=100.0,
        late_ms=0.0,
        tokens_in=300,
        tokens_out=20,
        model="Lexi",
        call_id="019aa000-0000-7000-8000-000000000001",
        at="2026-01-02T03:04:05+00:00",
        worker="host:1",
    )
    return replace(row, **changes)
