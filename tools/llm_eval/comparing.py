"""`compare`: what changed from one run to another, over the cases that both have. No model is asked."""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import orjson

from libs.evaluation.figures.compare import compare
from libs.evaluation.report.comparison import comparison_page, comparison_table
from libs.evaluation.running.folder import Folder, write_atomic
from libs.evaluation.running.journal import latest_rows
from libs.evaluation.running.plan import Plan
from tools.llm_eval.refusal import PASSED, UsageRefused
from tools.llm_eval.running import again, opened, uri


async def compare_runs(options: argparse.Namespace) -> int:
    """Compare two folders of results; 0, whatever changed. The page goes into the second folder.

    Raises `JournalError`, and `UsageRefused` where one of them holds no run, or no answer yet.
    """
    (first, first_plan), (second, second_plan) = opened(options.first), opened(options.second)
    for folder in (first, second):
        _require_answers(folder)
    document = await asyncio.to_thread(_compared, first, second, first_plan=first_plan, second_plan=second_plan)
    stem = f"compared-with-{first.path.resolve().name}"
    page = second.path / f"{stem}.html"
    write_atomic(second.path / f"{stem}.json", orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
    write_atomic(page, comparison_page(document))
    sys.stdout.write(f"{comparison_table(document).rstrip()}\n\npage     {uri(page)}\n")
    return PASSED


def _compared(first: Folder, second: Folder, *, first_plan: Plan, second_plan: Plan) -> Mapping[str, Any]:
    rows, others = latest_rows(first.rows), latest_rows(second.rows)
    return compare(rows, others, first_plan=first_plan, second_plan=second_plan).document()


def _require_answers(folder: Folder) -> None:
    if not folder.rows.exists() or folder.rows.stat().st_size == 0:
        raise UsageRefused(f"{folder.rows} holds no answer yet: {again('resume', folder.path)}")
