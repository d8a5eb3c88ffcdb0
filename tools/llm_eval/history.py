"""`history`: the evaluations on record, newest first."""

import argparse
import sys
from collections.abc import Iterable, Sequence

from libs.evaluation.sharing.register import Registered, history
from tools.llm_eval.database import database_if_there
from tools.llm_eval.refusal import PASSED, HarnessFailed

COLUMNS = ("made", "name", "prompts", "items", "state", "passed", "by", "id")


async def show_history(options: argparse.Namespace) -> int:
    """Print them; 0. Raises `HarnessFailed` where there is no database to read them from."""
    async with database_if_there() as database:
        if database.engine is None:
            raise HarnessFailed(f"evaluations are on record in Postgres: {database.without}")
        async with database.engine.connect() as connection:
            found = await history(connection, limit=options.limit)
    if not found:
        sys.stdout.write("no evaluation is on record yet: make eval-llm\n")
        return PASSED
    sys.stdout.write("".join(f"{line}\n" for line in _aligned([COLUMNS, *map(_cells, found)])))
    return PASSED


def _cells(one: Registered) -> Sequence[str]:
    prompts = ", ".join(f"{each.key} {each.version}{_mark(each.passed)}" for each in one.prompts)
    state = one.state if one.error is None else f"{one.state}: {one.error}"
    passed = "-" if one.passed is None else "yes" if one.passed else "no"
    return (
        f"{one.created_at:%Y-%m-%d %H:%M}",
        one.name,
        prompts,
        str(one.total),
        state,
        passed,
        one.asked_by,
        str(one.id),
    )


def _mark(passed: bool | None) -> str:
    """Which of several versions missed."""
    return " (missed)" if passed is False else ""


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
