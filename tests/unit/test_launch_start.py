"""A start: the server takes the script's place, and ready is said only after a completion came back."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from tests.unit.launch_cases import GPUS, KEY, REFUSED, SCRIPTS, Machine

WITHIN_S = 60.0


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


class Start:
    """A launch script that runs."""

    def __init__(self, machine: Machine, *arguments: str, **more: str) -> None:
        self.machine = machine
        self.log = (machine.folder / "log").open("w+", encoding="utf-8")
        given = {"LEXI_HOST": "127.0.0.1", **more}
        self.process = subprocess.Popen(
            [SCRIPTS / "launch_lexi.sh", *arguments], env=machine.environment(**given), stdout=self.log, stderr=self.log
        )

    @property
    def said(self) -> str:
        return (self.machine.folder / "log").read_text(encoding="utf-8")

    def wait_for(self, words: str) -> str:
        until = monotonic() + WITHIN_S
        while words not in self.said:
            assert monotonic() < until, self.said
            sleep(0.05)
        return self.said

    def started(self) -> dict[str, Any]:
        until = monotonic() + WITHIN_S
        while not (self.machine.folder / "started").exists():
            assert monotonic() < until, self.said
            sleep(0.05)
        return json.loads((self.machine.folder / "started").read_text(encoding="utf-8"))

    def asked(self) -> list[dict[str, Any]]:
        lines = (self.machine.folder / "asked").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def start(machine: Machine) -> Iterator[type[Start]]:
    running: list[Start] = []

    class Tracked(Start):
        def __init__(self, machine: Machine, *arguments: str, **more: str) -> None:
            super().__init__(machine, *arguments, **more)
            running.append(self)

    yield Tracked
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        one.log.close()


def test_ready_is_said_after_a_completion_and_not_before(machine: Machine, start: type[Start]) -> None:
    (machine.folder / "refusals").write_text("2", encoding="ascii")
    run = start(machine)
    said = run.wait_for("ready: Lexi answered a completion")
    asked = run.asked()
    assert len(asked) == 3
    assert {(one["path"], one["model"], one["key"]) for one in asked} == {
        ("/v1/chat/completions", "Lexi", f"Bearer {KEY}")
    }
    assert KEY not in said


def test_the_server_takes_the_scripts_place(machine: Machine, start: type[Start]) -> None:
    run = start(machine)
    started = run.started()
    assert started["pid"] == run.process.pid
    environment = started["environment"]
    assert environment["VLLM_API_KEY"] == KEY
    assert "LLM_API_KEY" not in environment
    assert KEY not in " ".join(started["flags"])
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PYTHONPATH"].split(":")[0] == str(SCRIPTS / "lib")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signals_and_the_exit_code_pass(machine: Machine, start: type[Start], sent: signal.Signals) -> None:
    (machine.folder / "exit-code").write_text("7", encoding="ascii")
    run = start(machine)
    run.wait_for("ready:")
    run.process.send_signal(sent)
    assert run.process.wait(WITHIN_S) == 7


def test_a_server_that_dies_is_not_called_ready(machine: Machine, start: type[Start]) -> None:
    (machine.folder / "dies").touch()
    (machine.folder / "exit-code").write_text("3", encoding="ascii")
    run = start(machine)
    assert run.process.wait(WITHIN_S) == 3
    assert "ready:" not in run.wait_for("the server ended before it answered")


def test_one_that_never_answers_is_ended(machine: Machine, start: type[Start]) -> None:
    (machine.folder / "refusals").write_text("1000", encoding="ascii")
    run = start(machine, LEXI_START_TIMEOUT_S="1")
    run.wait_for("no completion within 1 s: it answered 503 to a completion; the server was ended")
    assert run.process.wait(WITHIN_S) == 0


def test_an_answer_that_breaks_off_is_none(machine: Machine, start: type[Start]) -> None:
    (machine.folder / "broken").write_text("1", encoding="ascii")
    run = start(machine)
    assert "Traceback" not in run.wait_for("ready: Lexi answered a completion")


def test_broken_answers_alone_end_the_server(machine: Machine, start: type[Start]) -> None:
    (machine.folder / "broken").write_text("1000", encoding="ascii")
    run = start(machine, LEXI_START_TIMEOUT_S="1")
    run.wait_for("no completion within 1 s: no whole answer (IncompleteRead); the server was ended")
    assert run.process.wait(WITHIN_S) == 0


def test_an_error_about_the_key_does_not_quote_it() -> None:
    """Some of http.client's do. The server is ended, since nobody can ask it."""
    with subprocess.Popen(["sleep", "60"]) as server:
        program = [sys.executable, SCRIPTS / "lib/ready.py", "http://127.0.0.1:9", "Lexi", str(server.pid), "0"]
        key = {"VLLM_API_KEY": "SECRET-one\nSECRET-two"}
        done = subprocess.run(program, env=key, capture_output=True, text=True)
    assert (done.returncode, server.returncode) == (2, -signal.SIGTERM)
    assert "no whole answer (ValueError); the server was ended" in done.stderr
    assert "SECRET" not in done.stdout + done.stderr


def test_a_server_that_is_gone_need_not_be_ended() -> None:
    with subprocess.Popen(["true"]) as server:
        server.wait(WITHIN_S)
    ending = f"import ready; ready.end({server.pid}); print('ended')"
    done = subprocess.run(
        [sys.executable, "-c", ending], env={"PYTHONPATH": str(SCRIPTS / "lib")}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "ended\n")


def test_it_waits_for_what_time_can_mend(machine: Machine, start: type[Start]) -> None:
    """So a unit's start outlasts the port and the memory of a server that crashed."""
    (machine.folder / "gpus").write_text(GPUS.replace("24000, 0", "9000, 15000"), encoding="ascii")
    run = start(machine, LEXI_WAIT_S="60")
    run.wait_for("GPU 0 has 9000 of 24576 MiB free")
    assert "waiting at most" in run.said
    assert not (machine.folder / "started").exists()
    (machine.folder / "gpus").write_text(GPUS, encoding="ascii")
    run.started()


def test_it_does_not_wait_for_what_a_setting_must_mend(machine: Machine, start: type[Start]) -> None:
    run = start(machine, LEXI_WAIT_S="60", CUDA_VISIBLE_DEVICES="0")
    assert run.process.wait(WITHIN_S) == REFUSED
    assert "waiting" not in run.said


def test_systemd_is_told_when_it_is_ready(machine: Machine, start: type[Start]) -> None:
    place = machine.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place))
        listener.settimeout(WITHIN_S)
        run = start(machine, NOTIFY_SOCKET=str(place))
        assert listener.recv(64) == b"READY=1"
    run.wait_for("ready:")


def test_a_dry_run_starts_nothing(machine: Machine) -> None:
    machine.dry_run()
    assert not (machine.folder / "started").exists()
