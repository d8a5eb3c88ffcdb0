"""`report`: figures, page and verdict of a run anew, from its rows alone; no model is asked."""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from libs.evaluation.report.table import table
from libs.evaluation.running.folder import Folder, FolderError
from libs.evaluation.running.journal import JournalError
from libs.evaluation.running.plan import Plan, PlanError
from tools.llm_eval.database import database_if_there
from tools.llm_eval.outcome import code, course, judged, put_on_record, write_outcome
from tools.llm_eval.refusal import FAILED, UsageRefused
from tools.llm_eval.running import again, opened, show, tell

OWN_THRESHOLDS = "nothing written or registered: the thresholds are not those that the run was begun with"


async def report(options: argparse.Namespace) -> int:
    """Report on a folder; the exit code, as of the run itself. A run that lacks rows is a failure in any case.

    The result is registered where there is a database. Under other thresholds than the run was begun with it is only
    shown: a bar that is chosen once the result is known gates nothing, and the run's files keep its own verdict.
    """
    folder, plan = opened(options.folder)
    if not folder.rows.exists() or folder.rows.stat().st_size == 0:
        raise UsageRefused(f"{folder.rows} holds no answer yet: {again('resume', folder.path)}")
    if options.fail_under:
        if options.parquet:
            raise UsageRefused("report --fail-under writes nothing: leave --parquet out, or report without thresholds")
        summary = await _looked_at(folder, replace(plan, thresholds=tuple(str(one) for one in options.fail_under)))
    else:
        summary = await _made_anew(options, folder, plan)
    if not summary["run"]["complete"]:
        missing = summary["run"]["missing"]
        tell([f"{missing} of {plan.items} answers are missing: {again('resume', folder.path)}"])
        return FAILED
    return code(summary)


def way_out(path: Path) -> str | None:
    """What to do about a run that cannot be gone on with, though it lacks no answer; None where it does lack some."""
    try:
        folder = Folder.open(path)
        missing = course(folder, folder.read_plan()).missing
    except (FolderError, PlanError, JournalError, OSError):
        return None  # what is wrong with it was said already
    return None if missing else f"every answer is there: {again('report', path)} needs no model"


async def _looked_at(folder: Folder, plan: Plan) -> Mapping[str, Any]:
    summary = await asyncio.to_thread(judged, folder, plan)
    sys.stdout.write(f"{table(summary).rstrip()}\n\n{OWN_THRESHOLDS}\n")
    return summary


async def _made_anew(options: argparse.Namespace, folder: Folder, plan: Plan) -> Mapping[str, Any]:
    summary, html = await asyncio.to_thread(write_outcome, folder, plan, parquet=options.parquet)
    async with database_if_there() as database:
        registered = await put_on_record(
            database, plan, summary=summary, html=html, asked_by=options.operator or "command line"
        )
    show(folder, table(summary), registered)
    return summary
