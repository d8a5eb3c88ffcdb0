"""The watchdog as a process over a driver's library compiled for the test, and over an engine on a socket."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.fakes.docker_engine import DockerEngine
from tests.fakes.nvml import FakeDriver, jumping_clock, unkillable

ROOT = Path(__file__).parents[2]
MOST_MEMORY_KB = 40 * 1024
HEAVY = {"sqlalchemy", "asyncpg", "pydantic", "pydantic_settings", "fastapi", "starlette", "uvicorn", "numpy", "pandas"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


class Watchdog:
    """The process, its log and its page."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.port = free_port()
        self._log = folder / "watchdog.log"
        own = {"WATCHDOG_METRICS_PORT": str(self.port), "WATCHDOG_INTERVAL_S": "0.05", **environment}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.watchdog"], cwd=ROOT, env=os.environ | own, stderr=log
            )

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == name]

    def until(self, holds: Callable[[], object]) -> None:
        """Wait for something to become so; the test's own time limit ends a wait in vain."""
        while not holds():
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.02)

    def page(self, path: str) -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Watchdog]]:
    running: list[Watchdog] = []

    def start(**environment: str) -> Watchdog:
        running.append(Watchdog(tmp_path, **environment))
        return running[-1]

    yield start
    for each in running:
        each.process.kill()
        each.process.wait()


def over_nvml(driver: FakeDriver, **settings: str) -> dict[str, str]:
    """Each restart adds to a file how often the driver had been asked by then."""
    command = f"sh -c 'wc -c < {driver.file}.read >> {driver.file}.restarts'"
    own = {"WATCHDOG_READER": "nvml", "WATCHDOG_RESTART_COMMAND": command, "WATCHDOG_COOLDOWN_S": "0"}
    return {**driver.environment, **own, **settings}


def restarts(driver: FakeDriver) -> list[int]:
    file = Path(f"{driver.file}.restarts")
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def once(**environment: str) -> tuple[int, str, str]:
    asked = [sys.executable, "-m", "services.watchdog", "--once"]
    done = subprocess.run(asked, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_it_restarts_after_three_readings_in_a_row_and_not_before(
    tmp_path: Path, started: Callable[..., Watchdog]
) -> None:
    driver = FakeDriver(tmp_path, 10753, 10753, 10752, 10753, "lost", 10753, 10752.5, 9000)
    watchdog = started(**over_nvml(driver))
    watchdog.until(lambda: driver.asked >= 12)
    assert restarts(driver) == [7]
    assert "GPU is lost" in watchdog.events("unreadable")[0]["reason"]
    assert [line["mib"] for line in watchdog.events("reading")][:3] == [10753, 10753, 10752]
    assert watchdog.end() == 0
    assert watchdog.lines[-1]["event"] == "stopped"


def test_a_time_of_day_that_jumps_makes_no_difference(tmp_path: Path, started: Callable[..., Watchdog]) -> None:
    driver = FakeDriver(tmp_path, 10753)
    settings = {"WATCHDOG_COOLDOWN_S": "86400", "WATCHDOG_BUDGET_WINDOW_S": "86400"}
    watchdog = started(**over_nvml(driver, **settings), **jumping_clock(tmp_path))
    watchdog.until(lambda: driver.asked >= 12)
    days = {line["timestamp"][:10] for line in watchdog.lines}
    assert len(days) > 1  # it saw the jumps
    assert restarts(driver) == [3]
    assert len(watchdog.events("restart_waits")) >= 5


@pytest.mark.parametrize("trouble", ["hang", "crash"])
def test_a_driver_that_hangs_or_crashes_takes_nothing_with_it(
    trouble: str, tmp_path: Path, started: Callable[..., Watchdog]
) -> None:
    driver = FakeDriver(tmp_path, 10753, 10753, trouble, trouble, 10753, 9000)
    watchdog = started(**over_nvml(driver, WATCHDOG_READ_TIMEOUT_S="2"))
    watchdog.until(lambda: driver.asked >= 7)
    assert len(watchdog.events("unreadable")) == 2
    assert restarts(driver) == [5]


def test_no_driver_is_said_and_watched_for(tmp_path: Path, started: Callable[..., Watchdog]) -> None:
    settings = {"WATCHDOG_READER": "nvml", "WATCHDOG_RESTART_COMMAND": "true"}
    watchdog = started(**settings, LD_LIBRARY_PATH=str(tmp_path))
    watchdog.until(lambda: len(watchdog.events("unreadable")) >= 10 and watchdog.events("alert"))
    status, ready = watchdog.page("/ready")
    assert status == 503
    assert "red    memory: " in ready
    assert "NVML Shared Library Not Found" in ready
    assert watchdog.events("alert")[0]["kind"] == "watchdog_blind"


async def test_over_docker_it_stays_small(tmp_path: Path, started: Callable[..., Watchdog]) -> None:
    async with DockerEngine(tmp_path / "s", [9000, 10753, 10753, 10753, 9000]) as engine:
        settings = {"WATCHDOG_CONTAINER": "llm", "WATCHDOG_DOCKER_HOST": engine.host}
        watchdog = started(**settings)
        await asyncio.to_thread(watchdog.until, lambda: len(engine.commands) >= 20)
        assert len(engine.restarts) == 1
        assert engine.asked.index(engine.restarts[0]) > engine.asked.index("GET /v1.45/exec/e4/json")
        for path in ("/health", "/ready", "/metrics"):
            assert (await asyncio.to_thread(watchdog.page, path))[0] == 200
        proc = Path(f"/proc/{watchdog.process.pid}")
        memory = {
            line.split()[0]: line.split()[1] for line in (proc / "status").read_text().splitlines() if "kB" in line
        }
        assert int(memory["VmHWM:"]) < MOST_MEMORY_KB


def test_nothing_heavy_is_loaded() -> None:
    asked = [sys.executable, "-X", "importtime", "-c", "import services.watchdog.main"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert {"httpx", "prometheus_client"} <= loaded
    assert loaded & HEAVY == set()


def test_the_page_counts_and_refuses(tmp_path: Path, started: Callable[..., Watchdog]) -> None:
    driver = FakeDriver(tmp_path, 9000)
    watchdog = started(**over_nvml(driver))
    watchdog.until(lambda: driver.asked >= 3)
    assert watchdog.page("/health") == (200, '{"status":"ok"}')
    assert watchdog.page("/ready?x=1") == (200, "green  memory\ngreen  budget\ngreen  restart\n")
    _, metrics = watchdog.page("/metrics")
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("lexi_watchdog_"))
    assert float(values["lexi_watchdog_memory_bytes"]) == 9000 * 2**20
    assert float(values["lexi_watchdog_limit_bytes"]) == 10752 * 2**20
    assert float(values["lexi_watchdog_budget_left"]) == 3
    assert watchdog.page("/other")[0] == 404
    for sent, status in (
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"G" * 9000, b""),
    ):
        with socket.create_connection(("127.0.0.1", watchdog.port)) as line:
            line.sendall(sent)
            assert line.recv(100)[9:12] == status


def test_sigterm_lets_a_restart_command_end_first(tmp_path: Path, started: Callable[..., Watchdog]) -> None:
    driver = FakeDriver(tmp_path, 10753)
    stopped, go, up = tmp_path / "stopped", tmp_path / "go", tmp_path / "up"
    command = f"sh -c 'touch {stopped}; while [ ! -e {go} ]; do sleep 0.05; done; touch {up}'"
    watchdog = started(**over_nvml(driver, WATCHDOG_RESTART_COMMAND=command))
    watchdog.until(stopped.exists)
    watchdog.process.send_signal(signal.SIGTERM)
    watchdog.until(lambda: watchdog.events("stopping"))
    with pytest.raises(subprocess.TimeoutExpired):  # it waits, however long
        watchdog.process.wait(1)
    assert not up.exists()
    go.touch()
    assert watchdog.process.wait(30) == 0
    assert up.exists()
    assert [line["event"] for line in watchdog.lines[-2:]] == ["restart_command_ended", "stopped"]


@pytest.mark.parametrize("setting", ["RESTART", "DRAIN"])
def test_whom_sigterm_does_not_wait_for_is_left_to_end(
    setting: str, tmp_path: Path, started: Callable[..., Watchdog]
) -> None:
    driver = FakeDriver(tmp_path, 10753)
    begun, go, done = tmp_path / "begun", tmp_path / "go", tmp_path / "done"
    command = f"sh -c 'touch {begun}; while [ ! -e {go} ]; do sleep 0.05; done; touch {done}'"
    watchdog = started(**over_nvml(driver, **{f"WATCHDOG_{setting}_COMMAND": command}))
    watchdog.until(begun.exists)
    if setting == "RESTART":  # the first one waits for it
        watchdog.process.send_signal(signal.SIGTERM)
        watchdog.until(lambda: watchdog.events("stopping"))
    assert watchdog.end() == 0
    assert not done.exists()
    go.touch()
    while not done.exists():  # the test's own time limit ends a wait in vain
        time.sleep(0.02)


def test_sigterm_ends_it_in_the_wait_for_health(tmp_path: Path, started: Callable[..., Watchdog]) -> None:
    driver = FakeDriver(tmp_path, 10753)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        health = f"http://127.0.0.1:{silent.getsockname()[1]}/health"
        watchdog = started(**over_nvml(driver, WATCHDOG_HEALTH_URL=health, WATCHDOG_RESTART_COMMAND="true"))
        silent.accept()[0].close()
        assert watchdog.end() == 0
    assert watchdog.events("stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_reading_that_was_broken_off_says_nothing_about_the_card(number: signal.Signals, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    own = {"WATCHDOG_READER": "command", "WATCHDOG_RESTART_COMMAND": "true", "WATCHDOG_READ_TIMEOUT_S": "900"}
    own["WATCHDOG_READ_COMMAND"] = f"sh -c 'touch {begun}; sleep 600'"
    asked = [sys.executable, "-m", "services.watchdog", "--once"]
    with subprocess.Popen(asked, cwd=ROOT, env=os.environ | own, stdout=subprocess.PIPE) as process:
        while not begun.exists():
            time.sleep(0.02)
        process.send_signal(number)
        assert process.communicate(timeout=30)[0] == b""
    assert process.returncode == 128 + number


def test_a_driver_that_hangs_and_cannot_be_killed_does_not_take_the_watchdog_with_it(
    tmp_path: Path, started: Callable[..., Watchdog]
) -> None:
    driver = FakeDriver(tmp_path, 9000, "hang")
    watchdog = started(**over_nvml(driver, WATCHDOG_READ_TIMEOUT_S="2"), **unkillable(tmp_path))
    watchdog.until(lambda: watchdog.events("alert"))
    hung = watchdog.events("command_not_ended")[0]["process"]
    try:
        assert driver.asked == 2
        assert len(watchdog.events("unreadable")) == 10
        assert f"process {hung}" in watchdog.events("unreadable")[-1]["reason"]
        assert watchdog.page("/ready")[0] == 503
        assert watchdog.events("alert")[0]["kind"] == "watchdog_blind"
        assert watchdog.end() == 0
    finally:
        os.killpg(hung, signal.SIGKILL)


def test_a_restart_command_that_it_may_not_kill_costs_no_more_than_its_budget(
    tmp_path: Path, started: Callable[..., Watchdog]
) -> None:
    driver, begun = FakeDriver(tmp_path, 10753), tmp_path / "begun"
    settings = {
        "WATCHDOG_RESTART_COMMAND": f"sh -c 'echo x >> {begun}; exec sleep 600'",
        "WATCHDOG_RESTART_TIMEOUT_S": "1",
    }
    watchdog = started(**over_nvml(driver, **settings), **unkillable(tmp_path, refused=True))
    watchdog.until(lambda: watchdog.events("budget_spent"))
    hung = watchdog.events("command_not_ended")
    try:
        assert [line["reason"] for line in hung] == ["Operation not permitted"]
        alerts = watchdog.events("alert")
        assert [line["kind"] for line in alerts] == ["watchdog_restart_failed"] * 3 + ["watchdog_budget"]
        assert "sh took longer than 1 s, and could not be ended" in alerts[0]["text"]
        assert "the last sh still runs" in alerts[1]["text"]
        assert begun.read_text() == "x\n"
        assert watchdog.end() == 0
    finally:
        os.killpg(hung[0]["process"], signal.SIGKILL)


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
        own = {"WATCHDOG_CONTAINER": "llm", "WATCHDOG_METRICS_PORT": port}
        asked = [sys.executable, "-m", "services.watchdog"]
        done = subprocess.run(asked, cwd=ROOT, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"watchdog: cannot listen on 127.0.0.1:{port} (")
    assert done.stderr.endswith("or set WATCHDOG_METRICS_PORT to a free port\n")


@pytest.mark.parametrize(
    ("reading", "code", "said"),
    [
        (10752, 0, "10752 MiB, within the limit of 10752 MiB\n"),
        (10752.5, 1, "10752.5 MiB, above the limit of 10752 MiB\n"),
        (f"{10752 + 2**-20:.20f}", 1, "10752.000000953674 MiB, above the limit of 10752 MiB\n"),
        (f"{2**-20:.20f}", 0, "9.5367431640625e-07 MiB, within the limit of 10752 MiB\n"),
        ("lost", 3, "watchdog: unreadable: "),
    ],
)
def test_one_reading_tells_by_its_exit_code(reading: object, code: int, said: str, tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, reading)
    ended, out, err = once(**over_nvml(driver, WATCHDOG_READINGS="1"))
    assert (ended, (out or err).startswith(said)) == (code, True)
    assert driver.asked == 1
    assert restarts(driver) == []


def test_one_reading_with_settings_that_cannot_be_read() -> None:
    assert once(WATCHDOG_LIMIT_MIB="much")[0] == 2


def test_cards_are_named_by_index_or_uuid_and_the_fullest_counts(tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, 9000)
    second = "GPU-00000000-0000-0000-0000-000000000001"
    for gpu, said in (("0", "9000 MiB"), ("1", "9100 MiB"), ("0,1", "9100 MiB"), (second, "9100 MiB")):
        assert once(**over_nvml(driver, WATCHDOG_GPU=gpu))[1].startswith(said)
    for gpu in ("2", "0,2", "GPU-00000000-0000-0000-0000-00000000000f"):
        assert once(**over_nvml(driver, WATCHDOG_GPU=gpu))[0] == 3


def test_an_older_driver_is_read_by_the_older_call(tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path, 9000, old=True)
    assert once(**over_nvml(driver))[1].startswith("9400 MiB")  # it counts what it keeps for itself


def test_a_command_reads_too(tmp_path: Path) -> None:
    settings = {"WATCHDOG_READER": "command", "WATCHDOG_CONTAINER": "llm"}
    assert once(**settings, WATCHDOG_READ_COMMAND="printf '%s\\n' 9000 10753")[:2] == (
        1, "10753 MiB, above the limit of 10752 MiB\n",
    )  # fmt: skip
    assert "cannot run nvidia-smi" in once(**settings, PATH="/nowhere")[2]
