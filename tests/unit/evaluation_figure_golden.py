"""The golden runs under tests/data/evaluation, with the summaries that they must give.

`recorded` is what the embedded model answered to 28 cases of the bundled data; the others are simulated, and hold what
that model did not do.

`python -m tests.unit.evaluation_figure_golden` writes the summaries anew from the rows that are there, to be read as a
difference before it is believed; `--rows` makes the rows of the simulated ones anew as well.
"""

import json
import sys
from pathlib import Path
from typing import Any

from libs.evaluation.figures.summary import Summary, summarise
from libs.evaluation.running.plan import Plan, Prices, plan_from
from libs.evaluation.running.row import Row, row_from
from tests.unit.evaluation_figure_rows import (
    POLICY_ONE,
    POLICY_TWO,
    RATIONALE_ONE,
    Simulated,
    Ways,
    plan_of,
    simulated,
)

FOLDER = Path(__file__).parents[1] / "data" / "evaluation"
RECORDED = "recorded"
MADE = ("repeats", "versions")
RUNS = (RECORDED, *MADE)
ELAPSED_S = 93.4


def golden(name: str) -> tuple[Plan, list[Row], dict[str, Any]]:
    """A run's plan, its rows, and the summary it must give."""
    folder = FOLDER / name
    plan = plan_from(json.loads((folder / "plan.json").read_text()))
    rows = [row_from(line) for line in (folder / "rows.jsonl").read_bytes().splitlines()]
    return plan, rows, json.loads((folder / "summary.json").read_text())


def summed_up(plan: Plan, rows: list[Row]) -> Summary:
    """The summary of a golden run, of which every row is there that its folder holds."""
    return summarise(rows, plan, missing=plan.items - len(rows), elapsed_s=ELAPSED_S)


def _made(name: str) -> tuple[Plan, list[Row]]:
    """A run with something of everything; a few rows of the second are missing."""
    if name == "versions":
        made = Simulated(clean=30, masked=6, hostile=8)
        asked = ["validity=0.7", "flips=0", "caught=0.5", "policy@1.1.0:let_through=0.5", "masked_agreement=0.3"]
        plan = plan_of(
            (POLICY_ONE, POLICY_TWO, RATIONALE_ONE), cases=made.cases, thresholds=asked, prices=Prices(0.2, 0.6, 2.5)
        )
        ways = [
            Ways(invalid=0.1, flips=0.4, cached=0.1),
            Ways(wrongly_blocked=0.2, answered=0.85, flips=0.1),
            Ways(ungrounded=0.2),
        ]
        return plan, list(simulated(plan, made, ways=ways, seed=11))
    made = Simulated(clean=12, hostile=4)
    plan = plan_of(cases=made.cases, repeat=4, rate=2.5, thresholds=["repeat_agreement=0.2", "answered=0.5"])
    ways = [Ways(invalid=0.1, wrongly_allowed=0.3, wrongly_blocked=0.3, between=0.5, flips=0.2)]
    return plan, list(simulated(plan, made, ways=ways, seed=12))[:-3]


def _write(name: str, *, rows_too: bool) -> None:
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    if rows_too:
        plan, rows = _made(name)
        (folder / "plan.json").write_text(json.dumps(plan.document(), indent=1) + "\n")
        (folder / "rows.jsonl").write_bytes(b"".join(row.line() for row in rows))
        (folder / "summary.json").write_text("{}")
    plan, rows, _ = golden(name)
    document = summed_up(plan, rows).document()
    (folder / "summary.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for each in RUNS:
        _write(each, rows_too=each in MADE and "--rows" in sys.argv[1:])
