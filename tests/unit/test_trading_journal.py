"""The local journal: synced, chained, and not confused by what a crash leaves behind."""

import errno
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.trading.journal import Addition, Entry, Journal

ONE, TWO = UUID(int=1), UUID(int=2)
AT = datetime(2026, 1, 5, 15, 0, tzinfo=UTC)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl", now=lambda: AT)


def test_what_is_appended_is_read(journal: Journal) -> None:
    assert (journal.entries(), journal.first_broken()) == ([], None)
    first = journal.append(ONE, "begun", {"qty": Decimal("1.50"), "n": [1]})
    other = journal.append(TWO, "begun", {})
    second = journal.append(ONE, "ended", {})
    assert first.result == {"qty": "1.50", "n": [1]}
    assert (first.seq, other.seq, second.seq, first.at) == (1, 1, 2, AT)
    assert journal.entries() == [first, other, second]
    assert journal.entries(ONE) == [first, second]
    assert len({first.hash, other.hash, second.hash}) == 3
    assert journal.first_broken() is None


def test_another_writer_goes_on_with_the_chain(journal: Journal) -> None:
    other = Journal(journal.path)
    for number in range(3):
        assert journal.append(ONE, "a", {}).seq == 2 * number + 1
        assert other.append(ONE, "b", {}).seq == 2 * number + 2
    assert journal.first_broken() is None


def test_several_are_added_together_after_a_look_at_what_is_new(journal: Journal) -> None:
    """Who chooses sees what others added, and what was chosen follows it in the chain."""
    seen: list[str] = []

    def choose(found: Sequence[Entry]) -> list[Addition]:
        seen.extend(entry.action for entry in found)
        return [(ONE, "a", {}), (ONE, "b", {"n": 1}), (TWO, "c", {})]

    offset = journal.append_after(0, choose)
    Journal(journal.path).append(ONE, "other", {})
    assert journal.append_after(offset, choose) == journal.path.stat().st_size
    assert journal.append_after(0, lambda _: []) == journal.path.stat().st_size
    assert seen == ["other"]
    assert [(entry.action, entry.seq) for entry in journal.entries(ONE)] == [
        ("a", 1), ("b", 2), ("other", 3), ("a", 4), ("b", 5)
    ]  # fmt: skip
    assert journal.first_broken() is None


def _append_many(path: Path, number: int) -> None:
    journal = Journal(path)
    for _ in range(20):
        journal.append(UUID(int=number), "a", {})


def test_processes_append_side_by_side(journal: Journal) -> None:
    context = get_context("spawn")
    writers = [context.Process(target=_append_many, args=(journal.path, number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [entry.seq for entry in journal.entries(ONE)] == list(range(1, 21))
    assert [entry.seq for entry in journal.entries(TWO)] == list(range(1, 21))
    assert journal.first_broken() is None


@given(cut=st.integers(min_value=1, max_value=300))
def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "journal.jsonl"
    writer = Journal(path)
    whole = [writer.append(ONE, "a", {"n": number}) for number in range(3)]
    content = path.read_bytes()
    kept = content[: max(0, len(content) - cut)]
    path.write_bytes(kept)
    left = kept.count(b"\n")
    assert Journal(path).entries() == whole[:left]
    assert writer.append(ONE, "b", {}).seq == left + 1
    assert [entry.action for entry in Journal(path).entries()] == ["a"] * left + ["b"]
    assert Journal(path).first_broken() is None


def test_rubbish_behind_the_last_line_is_cut_off(journal: Journal) -> None:
    journal.append(ONE, "a", {})
    with journal.path.open("ab") as file:
        file.write(b"\0" * 100)
    journal.append(ONE, "b", {})
    assert [entry.action for entry in journal.entries()] == ["a", "b"]
    assert journal.first_broken() is None


def test_a_full_disk_leaves_no_half_line(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.append(ONE, "a", {})
    before = journal.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        journal.append(ONE, "b", {})
    monkeypatch.undo()
    assert journal.path.read_bytes() == before
    journal.append(ONE, "c", {})
    assert [entry.action for entry in journal.entries()] == ["a", "c"]
    assert journal.first_broken() is None


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(OSError, match="directory"):
        Journal(tmp_path / "journal.jsonl").append(ONE, "a", {})


def test_following(journal: Journal) -> None:
    assert journal.read_from(0) == ([], 0)
    first = journal.append(ONE, "a", {})
    found, offset = journal.read_from(0)
    assert found == [first]
    assert journal.read_from(offset) == ([], offset)
    second = journal.append(ONE, "b", {})
    with journal.path.open("ab") as file:
        file.write(b'{"half')
    found, further = journal.read_from(offset)
    assert found == [second]
    assert journal.read_from(further) == ([], further)


def test_a_file_that_was_replaced_is_read_anew(journal: Journal) -> None:
    for _ in range(3):
        journal.append(ONE, "a", {})
    _, offset = journal.read_from(0)
    journal.path.unlink()
    fresh = journal.append(ONE, "b", {})
    assert fresh.seq == 1
    assert journal.read_from(offset)[0] == [fresh]
    assert journal.first_broken() is None


def test_the_first_broken_line_is_named(journal: Journal) -> None:
    for number in range(4):
        journal.append(ONE, "a", {"n": number})
    lines = journal.path.read_text().splitlines()
    changed = lines[1].replace('"n":1', '"n":9')
    journal.path.write_text("\n".join([lines[0], changed, *lines[2:]]) + "\n")
    assert journal.first_broken() == f"line 2: entry 2 of {ONE} (a) does not fit the chain"
    journal.path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    assert journal.first_broken() == f"line 2: entry 3 of {ONE} (a) does not fit the chain"
    journal.path.write_text("\n".join([lines[0], "rubbish", *lines[1:]]) + "\n")
    assert journal.first_broken() == "line 2: not an entry"


def test_a_line_is_canonical_json(journal: Journal) -> None:
    entry = journal.append(ONE, "a", {"b": 1, "a": "ü"})
    line = journal.path.read_text().rstrip("\n")
    assert json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")) == line
    assert json.loads(line)["hash"] == entry.hash
