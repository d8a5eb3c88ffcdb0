"""What is read off a run's rows at its end, and rows that are not this run's."""

from pathlib import Path

import pytest

from libs.evaluation.running.folder import Folder
from libs.evaluation.running.journal import JournalError
from libs.evaluation.running.row import Row
from tests.unit.evaluation_running_cases import plan_of, row_of_item
from tools.llm_eval.outcome import Course, course


def folder_of(path: Path, *rows: Row) -> Folder:
    folder = Folder(path)
    folder.rows.write_bytes(b"".join(row.line() for row in rows))
    return folder


def test_a_silence_between_rows_is_no_time_of_the_run(tmp_path: Path) -> None:
    moments = ("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:07+00:00", "2026-01-02T09:00:00+00:00")
    rows = [row_of_item(item, at=at, total_ms=500.0) for item, at in enumerate(moments)]
    assert course(folder_of(tmp_path, *rows), plan_of(4)) == Course(missing=1, elapsed_s=2.5)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (row_of_item(9), "there is no item 9, the plan has 4"),
        (row_of_item(3, at=None), "item 3: at: None is no moment"),
        (row_of_item(3, at="yesterday"), "item 3: at: 'yesterday' is no moment"),
    ],
)
def test_a_row_that_cannot_be_of_this_run_is_named(tmp_path: Path, row: Row, says: str) -> None:
    folder = folder_of(tmp_path, row_of_item(0), row)
    with pytest.raises(JournalError, match=rf"rows\.jsonl: {says}; take its line out"):
        course(folder, plan_of(4))
