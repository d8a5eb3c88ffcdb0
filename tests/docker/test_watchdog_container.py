"""A real container that grows too big is restarted by the real watchdog, and only after three readings.

Part of `make proof`. Nothing is skipped: without a Docker engine it fails and says so.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.acceptance.stack import ROOT, free_ports

IMAGE = "python:3.12-slim"
SERVER = """
import http.server, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
starts = pathlib.Path("/card/starts")
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
time.sleep(1)  # a model takes a while to load
http.server.ThreadingHTTPServer(("", 8000), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
NVIDIA_SMI = """#!/bin/sh
[ "$*" = "--query-gpu=memory.used --format=csv,noheader,nounits -i 0" ] || { echo "asked $*" >&2; exit 2; }
echo x >> /card/read.$(wc -c < /card/starts)
cat /card/mib
"""


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr.strip()}"
    return done.stdout.strip()


class Card:
    """A container with a server and an nvidia-smi, which prints what the test says and notes when it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"watchdog-test-{uuid4().hex[:8]}"
        self.port = free_ports(("server",))["server"]
        folder.mkdir()
        folder.chmod(0o755)
        self.fill(9000)
        smi = folder / "nvidia-smi"
        smi.write_text(NVIDIA_SMI)
        smi.chmod(0o755)
        mounts = ["-v", f"{folder}:/card", "-v", f"{smi}:/usr/bin/nvidia-smi:ro"]
        run = ["run", "-d", "--name", self.name, "-p", f"127.0.0.1:{self.port}:8000", *mounts, "-w", "/card"]
        docker(*run, IMAGE, "python3", "-c", SERVER)
        while not (folder / "starts").exists():  # the test's own time limit ends a wait in vain
            time.sleep(0.05)

    def fill(self, mib: object) -> None:
        new = self.folder / "mib.new"
        new.write_text(f"{mib}\n")
        new.rename(self.folder / "mib")

    def state(self) -> dict[str, Any]:
        return json.loads(docker("inspect", "-f", "{{json .State}}", self.name))

    @property
    def readings(self) -> list[int]:
        """How often nvidia-smi was asked in each life of the container so far."""
        lives = len((self.folder / "starts").read_text()) if (self.folder / "starts").exists() else 0
        files = [self.folder / f"read.{life}" for life in range(1, lives + 1)]
        return [len(file.read_text().splitlines()) if file.exists() else 0 for file in files]


class Watchdog:
    """The process over it."""

    def __init__(self, card: Card, log: Path, **settings: str) -> None:
        self.log = log
        own = {
            "WATCHDOG_CONTAINER": card.name,
            "WATCHDOG_DOCKER_HOST": os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"),
            "WATCHDOG_HEALTH_URL": f"http://127.0.0.1:{card.port}/",
            "WATCHDOG_METRICS_PORT": str(free_ports(("metrics",))["metrics"]),
            "WATCHDOG_INTERVAL_S": "0.5",
            "WATCHDOG_STOP_GRACE_S": "10",
            **settings,
        }
        with log.open("w") as out:
            asked = [sys.executable, "-m", "services.watchdog"]
            self.process = subprocess.Popen(asked, cwd=ROOT, env=os.environ | own, stderr=out)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def until(self, holds: Callable[[], object]) -> None:
        """Wait for something to become so; the test's own time limit ends a wait in vain."""
        while not holds():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Card]:
    missing = subprocess.run(["docker", "version"], capture_output=True, text=True)
    if missing.returncode != 0:
        pytest.fail(f"a Docker engine is needed: {missing.stderr.strip()}", pytrace=False)
    made = Card(tmp_path / "card")
    yield made
    docker("rm", "-f", made.name)


@pytest.fixture
def watchdog(card: Card, tmp_path: Path) -> Iterator[Callable[..., Watchdog]]:
    running: list[Watchdog] = []

    def start(**settings: str) -> Watchdog:
        running.append(Watchdog(card, tmp_path / "log", **settings))
        return running[-1]

    yield start
    for each in running:
        each.process.kill()
        each.process.wait()


def test_a_container_that_grew_too_big_is_restarted_after_three_readings(
    card: Card, watchdog: Callable[..., Watchdog]
) -> None:
    dog = watchdog()
    dog.until(lambda: len(dog.events("reading")) >= 5)
    card.fill(10752)
    dog.until(lambda: len([event for event in dog.events("reading") if event["mib"] == 10752]) >= 5)
    before = card.state()
    card.fill(10753)
    dog.until(lambda: dog.events("restarting"))
    above = [event for event in dog.events("reading") if event["mib"] > 10752]
    assert [event["over_in_a_row"] for event in above] == [1, 2, 3]
    card.fill(9000)
    dog.until(lambda: dog.events("restart_ended"))
    assert dog.events("restart_ended")[0]["outcome"] == "back"
    after = card.state()
    assert after["Running"]
    assert after["StartedAt"] > before["StartedAt"]
    assert after["Pid"] != before["Pid"]
    assert after["ExitCode"] == 0  # it ended by itself at SIGTERM
    dog.until(lambda: len(card.readings) == 2 and card.readings[1] >= 5)
    assert len(dog.events("restarting")) == 1
    assert card.state()["StartedAt"] == after["StartedAt"]
    assert dog.end() == 0


def test_a_container_that_keeps_growing_is_restarted_as_often_as_the_budget_says(
    card: Card, watchdog: Callable[..., Watchdog]
) -> None:
    card.fill(12000)
    dog = watchdog(WATCHDOG_COOLDOWN_S="1", WATCHDOG_BUDGET="2")
    dog.until(lambda: len(dog.events("budget_spent")) >= 5)
    assert [event["kind"] for event in dog.events("alert")] == [
        "watchdog_restart",
        "watchdog_restart",
        "watchdog_budget",
    ]
    assert len(card.readings) == 3
    assert min(card.readings) >= 3


def test_what_cannot_be_read_in_a_real_container_is_said(card: Card, watchdog: Callable[..., Watchdog]) -> None:
    started = card.state()["StartedAt"]
    for command, reason in (
        ("no-such-smi", "executable file not found"),
        ("sh -c 'echo [N/A]'", "not a number of MiB: [N/A]"),
        ("sh -c 'echo driver gone >&2; exit 9'", "ended with code 9: driver gone"),
        ("sleep 3", "took longer than 1 s"),
    ):
        dog = watchdog(WATCHDOG_READ_COMMAND=command, WATCHDOG_READ_TIMEOUT_S="1")
        dog.until(lambda dog=dog: len(dog.events("unreadable")) >= 2)
        assert reason in dog.events("unreadable")[0]["reason"]
        assert dog.end() == 0
    assert card.state()["StartedAt"] == started


def test_a_command_that_hangs_runs_once(card: Card, watchdog: Callable[..., Watchdog]) -> None:
    dog = watchdog(WATCHDOG_READ_COMMAND="sleep 600", WATCHDOG_READ_TIMEOUT_S="1")
    dog.until(lambda: len(dog.events("unreadable")) >= 4)
    assert docker("top", card.name, "-eo", "pid,args").count("sleep 600") == 1
    assert "still runs" in dog.events("unreadable")[-1]["reason"]


def test_what_was_counted_before_a_restart_by_hand_does_not_count_after_it(
    card: Card, watchdog: Callable[..., Watchdog]
) -> None:
    card.fill(12000)
    dog = watchdog(WATCHDOG_READINGS="1000")
    dog.until(lambda: len(dog.events("reading")) >= 3)
    docker("restart", "-t", "5", card.name)
    lives = len(dog.events("reading"))
    dog.until(lambda: len(dog.events("reading")) >= lives + 3)
    counts = [event["over_in_a_row"] for event in dog.events("reading")]
    assert counts.count(1) == 2
    docker("rm", "-f", card.name)
    docker("run", "-d", "--name", card.name, "-v", f"{card.folder}/nvidia-smi:/usr/bin/nvidia-smi:ro",
           "-v", f"{card.folder}:/card", IMAGE, "sleep", "600")  # fmt: skip
    dog.until(lambda: [event["over_in_a_row"] for event in dog.events("reading")].count(1) == 3)
    assert dog.end() == 0


def test_the_beginning_of_an_id_names_nobody_and_what_docker_shows_does(
    card: Card, watchdog: Callable[..., Watchdog]
) -> None:
    own_id = docker("inspect", "-f", "{{.Id}}", card.name)
    dog = watchdog(WATCHDOG_CONTAINER=own_id[:11])
    dog.until(lambda: dog.events("unreadable"))
    assert f"no container is named {own_id[:11]}: " in dog.events("unreadable")[0]["reason"]
    assert dog.end() == 0
    dog = watchdog(WATCHDOG_CONTAINER=own_id[:12])
    dog.until(lambda: dog.events("reading"))
    assert dog.end() == 0
    assert card.readings == [len(dog.events("reading"))]


def test_a_container_that_stopped_or_is_gone_is_said_and_left_alone(
    card: Card, watchdog: Callable[..., Watchdog]
) -> None:
    dog = watchdog()
    dog.until(lambda: dog.events("reading"))
    docker("stop", "-t", "1", card.name)
    dog.until(lambda: any("not running" in event["reason"] for event in dog.events("unreadable")))
    docker("rm", card.name)
    dog.until(lambda: any("No such container" in event["reason"] for event in dog.events("unreadable")))
    assert dog.events("restarting") == []
    docker("run", "-d", "--name", card.name, IMAGE, "sleep", "600")
