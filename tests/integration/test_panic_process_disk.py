"""The panic exit as a process, where the disk or whoever listens fails it."""

import json
import os
import resource
from uuid import uuid4

from libs.trading.halt import EntryLock, HaltFile
from tests.integration.test_panic_process import House, house, wait_for

__all__ = ["house"]


def test_a_state_folder_where_nothing_can_be_written(house: House) -> None:
    code, answer, said = house.run("--state", "/proc/self")
    assert (code, answer["state"], answer["positions_closed"]) == (4, "PARTIAL", 2)
    assert any("halt file could not be written" in failure for failure in answer["failures"])
    assert "ENTRIES ARE NOT STOPPED" in said


def test_a_full_disk(house: House) -> None:
    """Files can be made, and nothing can be written into them."""
    process = house.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    answer = json.loads(process.communicate(timeout=60)[0])
    assert (process.returncode, answer["state"], answer["positions_closed"]) == (0, "FLAT", 2)
    assert HaltFile(house.state).path.read_bytes() == b""
    assert any("the halt file was written without its content" in failure for failure in answer["failures"])
    assert any("the journal could not be written" in failure for failure in answer["failures"])


def test_a_disk_that_hangs(house: House) -> None:
    """Reading the journal never returns: here a pipe that nobody writes to."""
    os.mkfifo(house.journal.path)
    house.extra["PANIC_LIMIT_S"] = "3"
    code, answer, _ = house.run()
    assert (code, answer["state"], answer["positions_closed"]) == (4, "PARTIAL", 2)
    assert any("could not be verified" in failure for failure in answer["failures"]), "an entry may be on its way"
    assert HaltFile(house.state).reason() is not None
    assert any("the disk has not answered" in failure for failure in answer["failures"])
    assert any("the disk does not answer" in failure for failure in answer["failures"])


def test_a_journal_full_of_rubbish(house: House) -> None:
    exit_id = str(uuid4())
    line = {"subject": exit_id, "seq": 1, "at": "2026-01-05T15:00:00+00:00", "action": "joined", "hash": ""}
    rubbish: list[object] = [{**line, "result": {"exit_id": "nobody"}}, {**line, "result": 7}, [], "x"]
    house.journal.path.write_text("".join(json.dumps(row) + "\n" for row in rubbish))
    code, answer, _ = house.run("--exit-id", exit_id)
    assert (code, answer["state"], answer["positions_closed"]) == (0, "FLAT", 2)


def test_readers_that_went_away_stop_nothing(house: House) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = house.start(stdout=writing, stderr=writing)
    os.close(writing)
    assert process.wait(timeout=60) == 0
    assert house.fake.positions == {}


def test_entries_wait_no_longer_than_the_halt(house: House) -> None:
    with EntryLock(house.state).sending(uuid4(), name="lexi-1") as sending:
        process = house.start()
        wait_for(lambda: house.fake.calls.count("GET /v2/positions") > 4)
        assert process.poll() is None, "an entry is on its way, so it cannot say flat"
        sending.settled = True
    assert process.wait(timeout=60) == 0
