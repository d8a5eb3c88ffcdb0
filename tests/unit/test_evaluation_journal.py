"""Rows on disk: there when `keep` returns, whole after a crash, never rewritten."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.evaluation.running.journal import Items, Journal, JournalError, latest_rows, read_rows
from libs.evaluation.running.row import NAMES, Row, RowError, row_from
from tests.unit.evaluation_running_cases import row_of_item

HOLD = """
import sys, time
from pathlib import Path
from libs.evaluation.running.journal import Journal
journal = Journal(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def content(path: Path) -> bytes:
    return path.read_bytes()


def put(path: Path, lines: bytes) -> None:
    path.write_bytes(lines)


def rows_of(path: Path) -> list[Row]:
    return [row for _, row in read_rows(path)]


def failed(item: int, error: str = "first_token_timeout: nothing came") -> Row:
    return row_of_item(item, status="unavailable", error=error, text="", allow=None)


async def test_a_kept_row_is_in_the_file_before_keep_returns(path: Path) -> None:
    async with Journal(path) as journal:
        for item in range(5):
            await journal.keep(row_of_item(item))
            assert rows_of(path)[-1] == row_of_item(item)
            assert item in journal.done
            assert item in journal.answered
        assert list(journal.done) == [0, 1, 2, 3, 4]
        assert len(journal.done) == journal.rows == 5
        assert 5 not in journal.done


async def test_rows_that_come_together_are_all_there(path: Path) -> None:
    async with Journal(path) as journal:
        await asyncio.gather(*(journal.keep(row_of_item(item)) for item in range(500)))
        assert sorted(row.item for row in rows_of(path)) == list(range(500))


async def test_a_row_whose_bringer_left_is_kept_all_the_same(path: Path) -> None:
    journal = Journal(path)
    bringing = asyncio.create_task(journal.keep(row_of_item(1)))
    await asyncio.sleep(0)
    bringing.cancel()
    await asyncio.gather(bringing, return_exceptions=True)
    await journal.close()
    assert [row.item for row in rows_of(path)] == [1]


async def test_what_was_kept_is_known_to_the_next_one(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.keep(row_of_item(3))
        await journal.keep(failed(8))
    async with Journal(path) as journal:
        assert set(journal.done) == {3, 8}
        assert set(journal.answered) == {3}
        assert journal.rows == 2


@pytest.mark.parametrize("left", [1, 10, -1])
async def test_a_torn_last_line_is_cut_and_said(path: Path, left: int) -> None:
    async with Journal(path) as journal:
        await journal.keep(row_of_item(1))
    whole, torn = content(path), row_of_item(2).line()[:left]
    put(path, whole + torn)
    assert [row.item for row in latest_rows(path)] == [1]
    async with Journal(path) as journal:
        assert journal.cut == len(torn)
        assert set(journal.done) == {1}
        assert content(path) == whole
        await journal.keep(row_of_item(2))
    assert [row.item for row in rows_of(path)] == [1, 2]


async def test_a_broken_line_before_the_last_is_not_cut(path: Path) -> None:
    broken = row_of_item(0).line() + b'{"item": 1}\n' + row_of_item(2).line()
    put(path, broken)
    with pytest.raises(JournalError, match=r"rows\.jsonl, line 2: try is missing"):
        Journal(path)
    assert content(path) == broken


def test_only_one_process_writes(path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(JournalError, match="being written by another process"):
            Journal(path)
        holder.kill()
    Journal(path)


async def test_trying_again_adds_a_row_and_an_answer_is_never_replaced(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.keep(failed(4))
        await journal.keep(failed(4))
    before = content(path)
    async with Journal(path) as journal:
        await journal.keep(row_of_item(4))
        await journal.keep(row_of_item(4, text="another"))
        await journal.keep(failed(4))
    assert content(path).startswith(before)
    assert [(row.try_, row.status) for row in rows_of(path)] == [(1, "unavailable"), (2, "unavailable"), (3, "ok")]


async def test_an_item_that_the_plan_does_not_have_is_refused(path: Path) -> None:
    async with Journal(path, items=3) as journal:
        with pytest.raises(JournalError, match="no item 3, the plan has 3"):
            await journal.keep(row_of_item(3))
    put(path, row_of_item(9).line())
    with pytest.raises(JournalError, match="no item 9"):
        Journal(path, items=3)


async def test_a_closed_journal_takes_nothing(path: Path) -> None:
    journal = Journal(path)
    await journal.close()
    with pytest.raises(JournalError, match="is closed"):
        await journal.keep(row_of_item(1))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"away/rows\.jsonl cannot be opened: No such file"):
        Journal(tmp_path / "away" / "rows.jsonl")


def test_no_file_has_no_rows(path: Path) -> None:
    assert list(latest_rows(path)) == []


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=30))
def test_the_latest_row_is_the_last_answer_else_the_last(
    tmp_path_factory: pytest.TempPathFactory, brought: list[tuple[int, bool]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [
        replace(row_of_item(item) if good else failed(item), call_id=str(number))
        for number, (item, good) in enumerate(brought)
    ]
    path.write_bytes(b"".join(row.line() for row in rows))
    wanted: dict[int, Row] = {}
    for row in rows:
        if row.answered or row.item not in wanted or not wanted[row.item].answered:
            wanted[row.item] = row
    assert {row.item: row for row in latest_rows(path)} == wanted
    assert len(list(latest_rows(path))) == len(wanted)


def test_a_row_is_one_line_that_says_try() -> None:
    row = row_of_item(3, reasons=("COVERAGE",), ungrounded=("1.5", "ä\n"), error='schema: "x"')
    line = row.line()
    assert line.count(b"\n") == 1
    assert list(orjson.loads(line)) == list(NAMES)
    assert orjson.loads(line)["try"] == 1
    assert row_from(line) == row


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"item": -1}, "item"),
        ({"item": True}, "item"),
        ({"try": "1"}, "try"),
        ({"status": "fine"}, "status"),
        ({"reasons": "COVERAGE"}, "reasons"),
        ({"flags": [1]}, "flags"),
    ],
)
def test_what_is_no_row_names_the_field(change: dict[str, object], named: str) -> None:
    document = row_of_item(1).document() | change
    with pytest.raises(RowError, match=named):
        row_from(orjson.dumps(document))


@pytest.mark.parametrize("line", [b"", b"\0\0\0\n", b"[]\n", b"{\n"])
def test_what_is_no_object_is_no_row(line: bytes) -> None:
    with pytest.raises(RowError):
        row_from(line)


def test_a_set_of_items_takes_anything_for_a_question(path: Path) -> None:
    path.write_bytes(row_of_item(1).line())
    done = Journal(path).done
    assert isinstance(done, Items)
    assert 1 in done
    for other in (0, -1, 10**20, "1", None):
        assert other not in done
