"""The halt file and the lock of entries."""

import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from libs.trading.halt import EntryLock, Halt, Halted, HaltFile, new_halt

AT = datetime(2026, 1, 5, 15, 0, tzinfo=UTC)


def a_halt(number: int = 1) -> Halt:
    return new_halt(UUID(int=number), "fire", at=AT, ttl_minutes=60)


@pytest.fixture
def halt_file(tmp_path: Path) -> HaltFile:
    return HaltFile(tmp_path)


def test_what_is_written_is_read(halt_file: HaltFile, tmp_path: Path) -> None:
    assert (halt_file.reason(), halt_file.read()) == (None, None)
    assert halt_file.write(a_halt()) is None
    assert halt_file.read() == a_halt()
    assert a_halt().halted_until == AT + timedelta(hours=1)
    assert halt_file.reason() == f"the halt file {tmp_path / 'halt'} exists"
    assert [path.name for path in tmp_path.iterdir()] == ["halt"]


def test_an_existing_halt_wins(halt_file: HaltFile) -> None:
    halt_file.write(a_halt(1))
    halt_file.write(a_halt(2))
    assert halt_file.read() == a_halt(1)


def test_the_folder_is_made(tmp_path: Path) -> None:
    deep = HaltFile(tmp_path / "a" / "b")
    deep.write(a_halt())
    assert deep.read() == a_halt()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"id": "x"}', b'{"id": 7}'])
def test_a_file_without_readable_content_halts(halt_file: HaltFile, content: bytes) -> None:
    halt_file.path.write_bytes(content)
    os.utime(halt_file.path, (AT.timestamp(), AT.timestamp()))
    read = halt_file.read()
    assert halt_file.reason() is not None
    assert read is not None
    assert (read.reason, read.at, read.halted_until) == (
        "the halt file has no readable content",
        AT,
        AT + timedelta(minutes=60),
    )
    again = halt_file.read()
    assert again is not None
    assert again.id == read.id


def test_times_without_a_zone_are_no_readable_content(halt_file: HaltFile) -> None:
    halt_file.write(a_halt())
    halt_file.path.write_text(halt_file.path.read_text().replace("+00:00", ""))
    read = halt_file.read()
    assert read is not None
    assert read.id != a_halt().id


def test_a_folder_that_is_gone_or_is_none_halts(tmp_path: Path) -> None:
    assert "cannot be read" in (HaltFile(tmp_path / "gone").reason() or "")
    (tmp_path / "file").touch()
    no_folder = HaltFile(tmp_path / "file")
    assert "cannot be read" in (no_folder.reason() or "")
    with pytest.raises(OSError, match="file"):
        no_folder.write(a_halt())


def test_a_dangling_link_and_a_folder_halt(halt_file: HaltFile) -> None:
    halt_file.path.symlink_to("nowhere")
    assert halt_file.reason() is not None
    assert halt_file.read() is not None
    halt_file.path.unlink()
    halt_file.path.mkdir()
    assert halt_file.reason() is not None
    assert halt_file.read() is not None


def test_a_full_disk_still_halts(halt_file: HaltFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "without its content" in (halt_file.write(a_halt()) or "")
    monkeypatch.undo()
    assert halt_file.path.read_bytes() == b""
    read = halt_file.read()
    assert read is not None
    assert read.reason == "the halt file has no readable content"
    assert len(list(halt_file.path.parent.iterdir())) == 1


def test_a_file_system_without_hard_links_still_halts(halt_file: HaltFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    assert halt_file.write(a_halt()) is None
    assert halt_file.read() == a_halt()
    assert halt_file.write(a_halt(2)) is None
    assert halt_file.read() == a_halt(), "the one that stands wins"
    assert len(list(halt_file.path.parent.iterdir())) == 1


def test_only_its_own_halt_is_removed(halt_file: HaltFile) -> None:
    halt_file.remove(uuid4())
    halt_file.write(a_halt())
    halt_file.remove(uuid4())
    assert halt_file.read() == a_halt()
    halt_file.remove(a_halt().id)
    assert halt_file.reason() is None


def test_a_file_made_by_hand_is_removed_by_the_id_it_got(halt_file: HaltFile) -> None:
    halt_file.path.touch()
    read = halt_file.read()
    assert read is not None
    halt_file.remove(read.id)
    assert halt_file.reason() is None


def test_entries_are_seen_while_they_are_sent(tmp_path: Path) -> None:
    lock, other = EntryLock(tmp_path), EntryLock(tmp_path)
    with lock.sending(uuid4(), name="lexi-1"), other.sending(uuid4(), name="lexi-2"):
        assert not lock.nobody_sending_now()
        assert not lock.nobody_sending(0.03)
    assert lock.nobody_sending(0.0)


def test_an_entry_is_not_sent_while_halted(tmp_path: Path) -> None:
    HaltFile(tmp_path).write(a_halt())
    with pytest.raises(Halted, match="halt file"), EntryLock(tmp_path).sending(uuid4(), name="lexi-1"):
        raise AssertionError("sent")
    assert EntryLock(tmp_path).nobody_sending_now()


@pytest.mark.parametrize("state", ["no/such/folder", "a folder that is none"])
def test_an_entry_is_not_sent_without_its_lock(tmp_path: Path, state: str) -> None:
    (tmp_path / "a folder that is none").touch()
    with pytest.raises(Halted), EntryLock(tmp_path / state).sending(uuid4(), name="lexi-1"):
        raise AssertionError("sent")


def test_the_lock_is_let_go_when_sending_fails(tmp_path: Path) -> None:
    lock = EntryLock(tmp_path)
    with pytest.raises(ZeroDivisionError), lock.sending(uuid4(), name="lexi-1"):
        raise ZeroDivisionError
    assert lock.nobody_sending_now()


def test_an_entry_is_marked_until_it_is_known_what_became_of_it(tmp_path: Path) -> None:
    lock = EntryLock(tmp_path)
    with lock.sending(uuid4(), name="lexi-1") as sending:
        assert [mark.name for mark in lock.marks.all()] == ["lexi-1"]
        sending.settled = True
    assert lock.marks.all() == []
    with lock.sending(uuid4(), name="lexi-2"):
        pass
    assert [mark.name for mark in lock.marks.all()] == ["lexi-2"]


def test_the_mark_is_there_before_the_halt_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever halts in between sees it; and an entry that was not sent leaves none."""
    lock, seen = EntryLock(tmp_path), list[str]()

    def look(_: HaltFile) -> str:
        seen.extend(mark.name for mark in lock.marks.all())
        return "halted meanwhile"

    monkeypatch.setattr(HaltFile, "reason", look)
    with pytest.raises(Halted, match="meanwhile"), lock.sending(uuid4(), name="lexi-1"):
        raise AssertionError("sent")
    assert seen == ["lexi-1"]
    assert lock.marks.all() == []


def test_an_entry_that_cannot_be_marked_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "entries").touch()
    with pytest.raises(Halted, match="cannot be marked"), EntryLock(tmp_path).sending(uuid4(), name="lexi-1"):
        raise AssertionError("sent")


def test_old_marks_are_tidied_away(tmp_path: Path) -> None:
    marks, old, young = EntryLock(tmp_path).marks, uuid4(), uuid4()
    marks.put(old, "lexi-1")
    marks.put(young, "lexi-2")
    long_ago = (AT - timedelta(seconds=61)).timestamp()
    os.utime(tmp_path / "entries" / str(old), (long_ago, long_ago))
    os.utime(tmp_path / "entries" / str(young), (AT.timestamp(), AT.timestamp()))
    marks.tidy(AT)
    assert [mark.name for mark in marks.all()] == ["lexi-2"]
