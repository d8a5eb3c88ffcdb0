"""Several panic exits at once, and one that goes on where another was interrupted."""

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from datetime import datetime
from uuid import UUID, uuid4

import pytest

from libs.trading.halt import HaltFile
from libs.trading.panic.report import LOCK_NAME, entries_of, result_of, unfinished
from tests.fakes.broker import Answer, FakeBroker, Server
from tests.integration.test_panic_process import KILLED, House, house, wait_for

__all__ = ["house"]

# The real process, which kills itself with signal 9 when it first asks for httpx.
KILLED_LOADING = """
import os, runpy, signal, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "httpx":
            os.kill(os.getpid(), signal.SIGKILL)
sys.meta_path.insert(0, Watch())
runpy.run_module("libs.trading.panic", run_name="__main__", alter_sys=True)
"""
BEFORE_ITS_BEGINNING = ("-c", KILLED, "0")
WHILE_HTTPX_LOADS = ("-c", KILLED_LOADING)


def test_a_new_request_goes_on_with_an_interrupted_exit(house: House) -> None:
    first, second = str(uuid4()), str(uuid4())
    house.run("3", "--exit-id", first, program=("-c", KILLED))
    code, answer, _ = house.run("--exit-id", second)
    assert (code, answer["exit_id"], answer["state"]) == (0, first, "FLAT")
    assert {str(entry.subject) for entry in house.journal.entries() if entry.action == "joined"} == {second}


def test_a_second_request_joins_the_first(house: House) -> None:
    house.fake.fills = False
    first = house.start()
    wait_for(lambda: "DELETE /v2/positions" in house.fake.calls)
    second = house.start()
    wait_for(lambda: any(entry.action == "joined" for entry in house.journal.entries()))
    house.fake.fills = True
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in (first, second)]
    assert answers[1] == answers[0] | {"halted_until": answers[1]["halted_until"]}
    assert answers[1]["halted_until"] > answers[0]["halted_until"], "60 minutes from each of them"
    assert (answers[0]["state"], first.returncode, second.returncode) == ("FLAT", 0, 0)
    assert house.fake.calls.count("DELETE /v2/positions") == 1


def test_who_joined_takes_over_when_the_first_is_killed(house: House) -> None:
    house.fake.fills = False
    first = house.start()
    wait_for(lambda: "DELETE /v2/positions" in house.fake.calls)
    second = house.start()
    wait_for(lambda: any(entry.action == "joined" for entry in house.journal.entries()))
    begun = unfinished(house.journal)
    first.kill()
    first.communicate()
    house.fake.fills = True
    answer = json.loads(second.communicate(timeout=60)[0])
    assert (answer["exit_id"], answer["state"], answer["positions_closed"]) == (str(begun), "FLAT", 2)
    assert house.fake.turned == []


def test_a_lock_that_no_exit_holds_is_not_waited_for(house: House) -> None:
    """As while somebody re-arms, who may be stuck: here this process, and the halt is taken away under the exit."""
    first = house.run()[1]
    house.fake.hold("TSLA", 1)

    def re_arm(method: str, path: str, number: int) -> Answer | None:
        if method == "DELETE" and path == "/v2/positions":
            HaltFile(house.state).remove(UUID(first["exit_id"]))
        return None

    house.fake.script = re_arm
    with (house.state / "panic.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, second, _ = house.run()
    assert (code, second["state"], second["positions_closed"]) == (0, "FLAT", 1)
    assert "went on beside it" in second["failures"][0]
    halt = HaltFile(house.state).read()
    assert halt is not None
    assert str(halt.id) == second["exit_id"], "put back by the exit that runs"


def test_a_request_after_the_end_begins_anew(house: House) -> None:
    first = house.run()[1]
    house.fake.hold("TSLA", 1)
    second = house.run()[1]
    assert (second["state"], second["positions_closed"]) == ("FLAT", 1)
    assert second["exit_id"] != first["exit_id"]
    assert second["halted_until"] > first["halted_until"], "60 minutes from each of them"
    third = house.run("--ttl-minutes", "5")[1]
    begun = datetime.fromisoformat(first["halted_until"])
    assert datetime.fromisoformat(third["halted_until"]) == begun, "the halt that stands lasts longer"


@pytest.fixture
def hears_interrupts() -> Iterator[None]:
    """What a shell puts into the background is deaf to SIGINT, and so is every process that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_interrupts")
def test_an_interrupt_leaves_it_to_be_resumed(house: House) -> None:
    house.fake.fills = False
    process = house.start()
    wait_for(lambda: "DELETE /v2/positions" in house.fake.calls)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with --resume" in said
    assert "Traceback" not in said
    house.fake.fills = True
    assert house.run("--resume")[1]["state"] == "FLAT"


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("program", [BEFORE_ITS_BEGINNING, WHILE_HTTPX_LOADS])
def test_killed_right_after_the_halt(house: House, program: tuple[str, ...], resume: bool) -> None:
    exit_id = str(uuid4())
    code, _, _ = house.run("--exit-id", exit_id, "--reason", "fire", "--ttl-minutes", "7", program=program)
    assert (code, house.fake.calls) == (-9, [])
    assert HaltFile(house.state).reason() is not None
    assert str(unfinished(house.journal)) == exit_id
    code, answer, _ = house.run(*(["--resume"] if resume else []))
    assert (code, answer["state"], answer["positions_closed"]) == (0, "FLAT", 2)
    begun = [entry for entry in house.journal.entries() if entry.action == "begun"]
    if resume or program == WHILE_HTTPX_LOADS:
        assert (answer["exit_id"], len(begun), begun[0].result["reason"]) == (exit_id, 1, "fire")
    assert unfinished(house.journal) is None
    assert house.run("--resume")[0] == 2


def test_an_exit_that_runs_through_is_never_resumed(house: House) -> None:
    house.run()
    actions = [entry.action for entry in house.journal.entries()]
    assert actions.count("begun") == 1
    assert "resumed" not in actions


def test_the_broker_stands_in_the_journal_and_in_the_first_and_last_line(house: House) -> None:
    _, _, said = house.run()
    begun = house.journal.entries()[0].result
    assert (begun["broker"], begun["base_url"]) == ("paper", house.server.url)
    first, *_, last = said.splitlines()
    assert f"paper broker at {house.server.url}" in first
    assert f"paper broker at {house.server.url}" in last


def test_an_exit_of_another_broker_is_not_gone_on_with(house: House) -> None:
    first = str(uuid4())
    house.run("3", "--exit-id", first, program=("-c", KILLED))
    there, other = house.extra.get("PAPER_URL", house.server.url), Server(FakeBroker())
    other.fake.hold("TSLA", 1)
    try:
        house.extra["PAPER_URL"] = other.url
        code, answer, said = house.run("--resume")
        assert (code, answer, other.fake.calls) == (2, {}, []), "going on is not asking for another exit"
        assert f"{first} of the paper broker at {there}" in said
        code, answer, said = house.run()
        assert (code, answer["state"], answer["positions_closed"]) == (0, "FLAT", 1)
        assert answer["exit_id"] != first
        assert first in said
        assert first in answer["failures"][0]
    finally:
        other.shutdown()
        other.server_close()
    assert str(unfinished(house.journal)) == first
    house.extra["PAPER_URL"] = there
    assert house.run("--resume")[1]["state"] == "FLAT"
    assert unfinished(house.journal) is None


def test_an_exit_of_another_broker_is_not_joined(house: House) -> None:
    house.fake.fills = False
    first = house.start()
    wait_for(lambda: "DELETE /v2/positions" in house.fake.calls)
    there, other = house.server.url, Server(FakeBroker())
    other.fake.hold("TSLA", 1)
    try:
        house.extra["PAPER_URL"] = other.url
        code, answer, _ = house.run()
    finally:
        other.shutdown()
        other.server_close()
    assert (code, answer["state"], answer["positions_closed"]) == (0, "FLAT", 1)
    assert any("exit of another broker" in failure for failure in answer["failures"])
    assert any(there in failure for failure in answer["failures"])
    house.fake.fills = True
    assert json.loads(first.communicate(timeout=60)[0])["state"] == "FLAT"


def test_who_joins_gets_the_halt_that_was_asked_for(house: House) -> None:
    house.fake.fills = False
    first = house.start("--ttl-minutes", "10", "--reason", "a")
    wait_for(lambda: "DELETE /v2/positions" in house.fake.calls)
    second = house.start("--ttl-minutes", "240", "--reason", "b")
    wait_for(lambda: any(entry.action == "joined" for entry in house.journal.entries()))
    house.fake.fills = True
    shorter, longer = (json.loads(process.communicate(timeout=60)[0]) for process in (first, second))
    assert longer["exit_id"] == shorter["exit_id"]
    assert (shorter["ttl_minutes"], longer["ttl_minutes"]) == (10, 240)
    [joined] = [entry.result for entry in house.journal.entries() if entry.action == "joined"]
    assert (joined["exit_id"], joined["reason"], joined["ttl_minutes"]) == (shorter["exit_id"], "b", 240)
    assert joined["halted_until"] == longer["halted_until"] > shorter["halted_until"]


def test_who_goes_on_with_an_interrupted_exit_gets_the_halt_that_was_asked_for(house: House) -> None:
    house.run("3", "--ttl-minutes", "10", program=("-c", KILLED))
    answer = house.run("--ttl-minutes", "240")[1]
    [joined] = [entry.result for entry in house.journal.entries() if entry.action == "joined"]
    assert answer["halted_until"] == joined["halted_until"]
    assert result_of(entries_of(house.journal, UUID(answer["exit_id"]))) == answer


def test_going_on_asks_for_no_longer_halt(house: House) -> None:
    house.run("3", "--ttl-minutes", "10", program=("-c", KILLED))
    halt = HaltFile(house.state).read()
    assert halt is not None
    assert house.run("--resume")[1]["halted_until"] == halt.halted_until.isoformat()


def test_a_request_after_one_that_never_began_is_found_under_its_own_id(house: House) -> None:
    """The first is killed with its name in the lock; this request had joined it and then ran as its own."""
    mine, dead = uuid4(), uuid4()
    house.journal.append(mine, "joined", {"exit_id": str(dead)})
    code, answer, _ = house.run("--exit-id", str(mine))
    assert (code, answer["exit_id"]) == (0, str(mine))
    assert result_of(entries_of(house.journal, mine)) == answer


def test_a_stopped_exit_is_not_waited_for_long(house: House) -> None:
    house.fake.fills = False
    first = house.start()
    wait_for(lambda: "DELETE /v2/positions" in house.fake.calls)
    os.kill(first.pid, signal.SIGSTOP)
    house.fake.fills = True
    code, answer, said = house.run()
    assert (code, answer["state"], answer["positions_closed"]) == (0, "FLAT", 2)
    assert "went on beside it" in said
    os.kill(first.pid, signal.SIGCONT)
    assert json.loads(first.communicate(timeout=60)[0])["state"] == "FLAT"
    assert house.fake.turned == []


def test_the_lock_bears_no_name_after_the_end(house: House) -> None:
    house.run()
    assert (house.state / LOCK_NAME).read_bytes() == b""
