"""What came of a run: figures, files, a place in the register, and what is printed about it."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import orjson
from sqlalchemy.exc import SQLAlchemyError

from libs.evaluation.cases.case import EvalCase
from libs.evaluation.cases.dataset import CaseFile
from libs.evaluation.figures.summary import summarise
from libs.evaluation.report.junit import junit
from libs.evaluation.report.page import page, shown_cases
from libs.evaluation.running.folder import Folder, write_atomic
from libs.evaluation.running.journal import JournalError, latest_rows, read_rows
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row
from libs.evaluation.sharing.register import register
from tools.llm_eval.database import Database
from tools.llm_eval.parquet import write_parquet
from tools.llm_eval.refusal import MISSED, PASSED

PAUSE_S = 300.0
"""A longer silence between two rows is a run that stood still, not one that asked."""


@dataclass(frozen=True, slots=True)
class Course:
    """How far the rows of a run reach: items without one, and the seconds in which rows came."""

    missing: int
    elapsed_s: float


def course(folder: Folder, plan: Plan) -> Course:
    """Read off the rows, so that it is the same however often the run was broken off. Raises `JournalError`."""
    if not folder.rows.exists():
        return Course(plan.items, 0.0)
    came, moments = bytearray(plan.items), array("d")
    for _, row in read_rows(folder.rows):
        if row.item >= plan.items:
            raise JournalError(
                f"{folder.rows}: there is no item {row.item}, the plan has {plan.items}; take its line out"
            )
        came[row.item] = 1
        began = _moment_of(folder, row)
        moments.append(began)
        if len(moments) == 1:
            moments.append(began - (row.total_ms + row.late_ms) / 1000)
    gaps = (later - earlier for earlier, later in pairwise(sorted(moments)))
    return Course(plan.items - sum(came), sum(gap for gap in gaps if gap <= PAUSE_S))


def _moment_of(folder: Folder, row: Row) -> float:
    try:
        return datetime.fromisoformat(row.at).timestamp()
    except (TypeError, ValueError) as error:
        raise JournalError(
            f"{folder.rows}: item {row.item}: at: {row.at!r} is no moment; take its line out, then resume the run"
        ) from error


def judged(folder: Folder, plan: Plan) -> Mapping[str, Any]:
    """The summary that the rows come to by the plan's thresholds; nothing is written. Raises `JournalError`."""
    reach = course(folder, plan)
    rows = latest_rows(folder.rows)
    return summarise(rows, plan, missing=reach.missing, elapsed_s=reach.elapsed_s).document()


def write_outcome(folder: Folder, plan: Plan, *, parquet: bool) -> tuple[Mapping[str, Any], str]:
    """Make figures, page and the rest from the rows, and write them; returns the summary and the page.

    Raises `JournalError`, `DatasetError`, `FolderError`.
    """
    summary = judged(folder, plan)
    html = page(summary, _cases_of(folder, summary))
    write_atomic(folder.summary, orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode() + "\n")
    write_atomic(folder.report, html)
    write_atomic(folder.junit, junit(summary))
    if parquet:
        write_parquet(latest_rows(folder.rows), folder.parquet)
    return summary, html


def _cases_of(folder: Folder, summary: Mapping[str, Any]) -> dict[str, EvalCase]:
    """The cases that the page shows whole."""
    shown = shown_cases(summary)
    if not shown:
        return {}
    with CaseFile(folder.cases) as cases, folder.cases.open("rb") as lines:
        found = ((number, orjson.loads(line)["id"]) for number, line in enumerate(lines))  # only the few are read whole
        return {name: cases.case(number) for number, name in found if name in shown}


async def put_on_record(database: Database, plan: Plan, *, summary: Mapping[str, Any], html: str, asked_by: str) -> str:
    """Register the outcome where there is a database; what came of that, as a line."""
    if database.engine is None:
        return f"not registered: {database.without}; `report` on the folder does it once there is one"
    try:
        async with database.engine.begin() as connection:
            state = await register(connection, plan=plan, summary=summary, report_html=html, asked_by=asked_by)
    except (SQLAlchemyError, OSError) as error:
        reason = str(error).splitlines()[0]
        return f"not registered: {reason}; `report` on the folder tries it again"
    return f"registered as {plan.evaluation_id} ({state})"


def code(summary: Mapping[str, Any]) -> int:
    """The exit code of a run that is whole."""
    return MISSED if summary["passed"] is False else PASSED
