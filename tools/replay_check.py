"""`make replay-check`: every stored decision and verdict must come out again: `python -m tools.replay_check`.

`python -m libs.replay check` replays the decisions; the verdicts are added here, since the gate and the model's side
know nothing of each other. A file whose name begins with `verdicts` holds whole cases of the gate: order, decision,
situation, and what was said. Of a verdict in the database the record holds less: order, decision and what was said. Its
policy reasons are judged anew under today's settings; those of limits, account and halt are taken as they stand.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import text

from libs import telemetry
from libs.db.opening import open_database
from libs.process import explain
from libs.replay.check_command import add_arguments, run_check
from libs.settings import load
from libs.telemetry import mask_text
from libs.trading.gate import WITHOUT_DECISION, Situation, Verdict, conclude, judge, policy_reasons
from libs.trading.limits import GateSettings, Terms
from libs.trading.reasons import Kind, Reason
from libs.trading.types import Mode, Order, StoredDecision
from libs.upstreams.settings import UpstreamSettings

VERDICTS = "verdicts"
ANOTHER = "another"
PAGE = 500

STORED = text(
    """
    select seq, payload from gate_verdicts
    where at >= :since and at < :until and seq > :after order by seq limit :page
    """
)


@dataclass(frozen=True, slots=True)
class GateCase:
    """One call of the gate, and what it said."""

    order: Order
    decision: StoredDecision | None
    situation: Situation
    verdict: Verdict


CASES: TypeAdapter[GateCase] = TypeAdapter(GateCase)


class VerdictFileError(Exception):
    """A file of verdicts cannot be read; the message names the file and the line."""


@dataclass(slots=True)
class Verdicts:
    """How the verdicts went. `without_policy` counts those no policy had a say in: exits, and repeated orders."""

    checked: int = 0
    without_policy: int = 0
    different: int = 0
    first: str | None = None

    def count(self, name: str, stored: Mapping[str, Any], now: Verdict) -> None:
        """Hold one verdict against the one that comes now, and keep the first difference."""
        self.checked += 1
        for where, value in said(now).items():
            if stored[where] != value:
                self.different += 1
                self.first = self.first or f"{name}: {where}: stored {stored[where]!r}, now {value!r}"
                return

    def __str__(self) -> str:
        aside = f" ({self.without_policy} exits and repeated orders left out)" if self.without_policy else ""
        if not self.checked:
            return f"0 verdicts: nothing to check{aside}"
        if self.first is None:
            return f"{self.checked} verdicts: all as stored{aside}"
        return f"{self.checked} verdicts: {self.different} differ{aside}\nthe first difference: {self.first}"


def said(verdict: Verdict) -> dict[str, Any]:
    """A verdict in JSON's types."""
    return {
        "mode": verdict.mode,
        "reasons": [reason.value for reason in verdict.reasons],
        "would_have": verdict.would_have,
        "verdict": verdict.verdict,
    }


def read_verdicts(path: Path) -> Iterator[GateCase]:
    """The cases of a file. Raises `VerdictFileError`."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield CASES.validate_json(line)
            except ValidationError as error:
                raise VerdictFileError(f"{path}, line {number}: {error.errors()[0]['msg']}") from error


def check_file(path: Path, into: Verdicts) -> None:
    """Judge every case of a file again."""
    for number, case in enumerate(read_verdicts(path), start=1):
        name = f"{path.name}, line {number} (order {case.order.client_order_id}, {case.order.ticker})"
        into.count(name, said(case.verdict), judge(case.order, case.decision, case.situation))


async def check_stored(into: Verdicts, *, since: datetime, until: datetime | None) -> None:
    """Judge the policy's part of the verdicts in the database again."""
    terms = load(GateSettings).terms(model=load(UpstreamSettings).llm_model)
    after, end = 0, until if until is not None else datetime.now(UTC)
    async with open_database(application="replay-check", pool_size=1) as engine:
        while True:
            where = {"since": since, "until": end, "after": after, "page": PAGE}
            async with engine.connect() as connection:
                rows = (await connection.execute(STORED, where)).all()
            for row in rows:
                check_record(json.loads(row.payload), into, terms=terms)
            if len(rows) < PAGE:
                return
            after = rows[-1].seq


def check_record(record: Mapping[str, Any], into: Verdicts, *, terms: Terms) -> None:
    """Judge one stored verdict again, where the policy had a say in it."""
    if record["reduce_only"] or "exit" in record or not record["first"]:
        into.without_policy += 1
        return
    into.count(
        f"verdict {record['id']} (order {record['client_order_id']}, {record['ticker']})",
        record,
        verdict_of(record, terms=terms),
    )


def verdict_of(record: Mapping[str, Any], *, terms: Terms) -> Verdict:
    """What the gate says of a stored order and decision now, with the hard reasons that were found then."""
    mode: Mode = next(mode for mode in get_args(Mode) if mode == record["mode"])
    policy = tuple(dict.fromkeys(policy_reasons(order_of(record), decision_of(record), terms)))
    hard = tuple(reason for code in record["reasons"] if (reason := Reason(code)).kind is Kind.HARD)
    if terms.allow_without and WITHOUT_DECISION.issuperset(policy):
        return conclude(mode, policy=(), hard=hard, noted=policy)
    return conclude(mode, policy=policy, hard=hard)


def order_of(record: Mapping[str, Any]) -> Order:
    """The order of a stored verdict.

    The horizon it asked for is not kept beside that of the decision: where ticker and side agree and it was a mismatch
    all the same, it was another one.
    """
    seen = record["decision"]
    other = seen is not None and Reason.MISMATCH in record["reasons"] and seen["side"] == record["side"]
    return Order(
        ticker=record["ticker"],
        side=record["side"],
        qty=Decimal(record["qty"]),
        ref_price=Decimal(record["ref_price"]),
        client_order_id=record["client_order_id"],
        key_name=record["key_name"],
        horizon=ANOTHER if other else None,
        strategy=record["strategy"],
    )


def decision_of(record: Mapping[str, Any]) -> StoredDecision | None:
    """The decision as the gate saw it; None where there was none."""
    seen = record["decision"]
    if seen is None:
        return None
    return StoredDecision(
        forecast_id=UUID(record["forecast_id"]),
        feed=record["feed"],
        ticker=record["ticker"],
        horizon=record["horizon"],
        model=record["model"],
        as_of=datetime.fromisoformat(record["as_of"]),
        side=seen["side"],
        status=seen["status"],
        allow=seen["allow"],
        reasons=tuple(seen["reasons"]),
        rules_allow=seen["rules_allow"],
        rules_reasons=tuple(seen["rules_reasons"]),
        answered_by=seen["answered_by"],
        age_s=record["decision_age_s"],
        error=seen["error"],
        past_due=seen["past_due"],
        used_by=seen["used_by"],
        prompt_version=record["prompt_version"],
        prompt_hash=seen["prompt_hash"],
        arm=record["arm"],
    )


@dataclass(slots=True)
class Outcome:
    """What to print of a check, whether everything came out as stored, and why that says nothing where it does."""

    printed: list[str]
    well: bool = True
    nothing: str | None = None


async def run(options: argparse.Namespace) -> Outcome:
    """Check all that was asked for.

    A period may have forecasts and no verdicts, as long as nobody trades. A file that was named holds what to check.
    """
    files: list[Path] = options.files
    gate_files = [path for path in files if path.name.startswith(VERDICTS)]
    options.files = [path for path in files if path not in gate_files]
    verdicts, outcome = Verdicts(), Outcome([])
    if options.files or options.since is not None:
        decisions = await run_check(options)
        outcome.printed.append(str(decisions))
        outcome.well, outcome.nothing = decisions.first is None, decisions.nothing
    for path in gate_files:
        check_file(path, verdicts)
    if options.since is not None:
        await check_stored(verdicts, since=options.since, until=options.until)
    if gate_files or options.since is not None:
        outcome.printed.append(str(verdicts))
    outcome.well = outcome.well and verdicts.first is None
    if verdicts.checked and not files:
        outcome.nothing = None
    if gate_files and not verdicts.checked:
        outcome.nothing = outcome.nothing or "no verdict was checked: there is none in the files"
    return outcome


def main(arguments: Sequence[str]) -> int:
    """Check, and print how it went.

    0 when all is as stored, 1 with the first difference, 2 where it cannot be done, or nothing was there to check.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.replay_check", description="Recorded answers, exactly again."
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if not options.files and options.since is None:
        parser.error("give files of cases, or --since for what is stored")
    try:
        outcome = asyncio.run(run(options))
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.stderr.write(f"{mask_text(line)}\n")
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in outcome.printed))
    if not outcome.well:
        return 1
    if outcome.nothing is not None:
        sys.stderr.write(f"{outcome.nothing}\n")
        return 2
    return 0


if __name__ == "__main__":
    telemetry.configure("replay-check", level="ERROR")
    sys.exit(main(sys.argv[1:]))
