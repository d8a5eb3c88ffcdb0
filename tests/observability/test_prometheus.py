"""A real Prometheus over the running stack: it scrapes everybody, answers every panel, and an alert fires and clears.

Part of `make proof`: it needs Debian's package prometheus, which `make proof` installs where it may.
"""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from tests.acceptance.stack import ROOT, ModelServer, RunningStack, eventually, free_ports

pytestmark = pytest.mark.timeout(900)

DEPLOY = ROOT / "deploy"
SERVICES = {
    "api": "API_PORT",
    "analytics": "ANALYTICS_PORT",
    "forecast": "FORECAST_METRICS_PORT",
    "jobs": "JOBS_METRICS_PORT",
}
HAS_DATA = {
    "Halted", "Kill switch", "Shadow", "Upstreams not up", "Account last read", "Calls", "Slots in use", "Judged",
    "Share given to each version", "Database", "Memory", "CPU", "Routes, p95",
}  # fmt: skip


class Prometheus:
    """The server, over our own configuration with the stack's ports in it."""

    def __init__(self, folder: Path, stack: RunningStack, model: ModelServer) -> None:
        shutil.copytree(DEPLOY / "prometheus", folder)
        targets = [
            {"targets": [f"127.0.0.1:{stack.ports[port]}"], "labels": {"service": service}}
            for service, port in SERVICES.items()
        ]
        (folder / "targets.yml").write_text(yaml.safe_dump(targets))
        (folder / "model.yml").write_text(
            yaml.safe_dump([{"targets": [f"127.0.0.1:{model.port}"], "labels": {"service": "model"}}])
        )
        self.port = free_ports(("prometheus",))["prometheus"]
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{self.port}"], stdout=log, stderr=log
            )

    def ask(self, path: str, **query: str) -> Any:
        """What its API answers; an expression that it cannot read is an error here."""
        with urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(query)}", timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def value(self, expression: str) -> list[Any]:
        """The series of an expression now; none while the server is not up yet."""
        try:
            return self.ask("query", query=expression)["result"]
        except OSError:
            return []

    def firing(self) -> set[str]:
        """The alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    server = ModelServer()
    server.start()
    yield server
    server.send(signal.SIGKILL)


@pytest.fixture(scope="module")
def stack(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    running = RunningStack(
        tmp_path_factory.mktemp("stack") / "state",
        LLM_BASE_URL=f"http://127.0.0.1:{model.port}/v1",
        FORECAST_INTERVAL_S="2",
    )
    running.start()
    running.wait_until_up()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def prometheus(
    stack: RunningStack, model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path_factory.mktemp("prometheus") / "config", stack, model)
    yield server
    server.process.terminate()
    server.process.wait(30)


@pytest.mark.parametrize("words", [["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_finds_nothing_amiss(words: list[str]) -> None:
    done = subprocess.run(["promtool", *words], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_scrapes_every_service_and_the_model(prometheus: Prometheus) -> None:
    eventually(lambda: len(prometheus.value("up == 1")) == 5 or None, what="five targets are up", within_s=60)
    assert prometheus.ask("targets")["droppedTargets"] == []


def test_every_panel_is_answered_and_those_of_a_young_stack_have_data(prometheus: Prometheus) -> None:
    rows = yaml.safe_load((DEPLOY / "grafana" / "panels.yml").read_text())
    asked = {panel["title"]: list(panel["queries"].values()) for row in rows.values() for panel in row}
    assert set(asked) > HAS_DATA
    for title, expressions in asked.items():
        for expression in expressions:
            plain = expression.replace("$__rate_interval", "1m")
            if title in HAS_DATA:
                eventually(lambda plain=plain: prometheus.value(plain) or None, what=title, within_s=90)
            else:
                prometheus.ask("query", query=plain)


def test_an_alert_fires_when_the_model_goes_and_clears_when_it_is_back(
    prometheus: Prometheus, model: ModelServer
) -> None:
    eventually(lambda: not prometheus.firing() or None, what="all is quiet", within_s=120)
    model.send(signal.SIGKILL)
    eventually(lambda: "LexiModelDown" in prometheus.firing() or None, what="the alert fires", within_s=180)
    model.start()
    eventually(lambda: "LexiModelDown" not in prometheus.firing() or None, what="the alert clears", within_s=120)


def test_the_desk_is_called_when_somebody_pulls_the_panic_exit(prometheus: Prometheus, stack: RunningStack) -> None:
    done = stack.make("panic", "REASON=a drill of the alerts")
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = {"LexiHalted", "LexiPanicUsed"}
    eventually(lambda: wanted <= prometheus.firing() or None, what="halt and panic are told", within_s=90)
