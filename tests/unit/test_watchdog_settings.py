"""The settings: defaults as promised, errors that name the variable, and a plan that arrives whole."""

import json
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from libs.settings import SettingsError
from services.watchdog.plan import Plan, PlanError, read_plan
from services.watchdog.settings import WatchdogSettings, make_plan

ROOT = Path(__file__).parents[2]


def test_the_defaults_are_those_of_the_old_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_CONTAINER", "llm")
    plan = make_plan()
    assert (plan.reader, plan.limit_mib, plan.readings, plan.interval_s) == ("docker", 10752, 3, 60)
    assert (plan.metrics_port, plan.host, plan.docker_host) == (9103, "127.0.0.1", "unix:///var/run/docker.sock")
    assert plan.read_command[0] == "nvidia-smi"
    assert plan.subject == "llm"


def test_a_plan_has_a_place_for_every_setting() -> None:
    assert {field.name for field in fields(Plan)} == {*WatchdogSettings.model_fields, "cards", "host", "webhook"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WATCHDOG_READER", "rocm"), ("WATCHDOG_CONTAINER", "a/../b"), ("WATCHDOG_GPU", "0;1"), ("WATCHDOG_GPU", "-1"),
        ("WATCHDOG_GPU", "0,1,0"),
        ("WATCHDOG_DOCKER_HOST", "/var/run/docker.sock"), ("WATCHDOG_DOCKER_HOST", "ssh://host"),
        ("WATCHDOG_LIMIT_MIB", "0"), ("WATCHDOG_LIMIT_MIB", "inf"), ("WATCHDOG_READINGS", "0"),
        ("WATCHDOG_INTERVAL_S", "0"), ("WATCHDOG_INTERVAL_S", "nan"), ("WATCHDOG_BUDGET", "-1"),
        ("WATCHDOG_READ_COMMAND", "nvidia-smi 'open"), ("WATCHDOG_HEALTH_URL", "localhost:8000/health"),
        ("WATCHDOG_METRICS_PORT", "70000"),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_CONTAINER", "llm")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}=") as caught:
        make_plan()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", ["docker", "nvml", "command"])
def test_there_must_be_something_to_restart(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_READER", reader)
    with pytest.raises(SettingsError, match=r"^WATCHDOG_CONTAINER "):
        make_plan()


def test_without_a_container_a_command_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_READER", "nvml")
    monkeypatch.setenv("WATCHDOG_RESTART_COMMAND", "systemctl restart 'my hermes'")
    assert make_plan().restart_command == ["systemctl", "restart", "my hermes"]
    assert make_plan().subject == "systemctl restart my hermes"


@pytest.mark.parametrize(
    ("reader", "command", "cards"), [("docker", "", 2), ("nvml", "", 2), ("nvml", "cat x", 2), ("command", "cat x", 0)]
)
def test_a_reading_has_a_line_for_each_card_unless_a_command_of_ones_own_says_it(
    reader: str, command: str, cards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_CONTAINER", "llm")
    monkeypatch.setenv("WATCHDOG_READER", reader)
    monkeypatch.setenv("WATCHDOG_GPU", "0,1")
    if command:
        monkeypatch.setenv("WATCHDOG_READ_COMMAND", command)
    assert make_plan().cards == cards


def test_the_plan_arrives_whole_with_its_secret_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    webhook = tmp_path / "webhook"
    webhook.write_text("https://chat.example/secret-path\n")
    monkeypatch.setenv("ALERT_WEBHOOK_URL_FILE", str(webhook))
    monkeypatch.setenv("WATCHDOG_CONTAINER", "llm")
    monkeypatch.chdir(ROOT)
    plan = read_plan()
    assert asdict(plan) == asdict(make_plan())
    assert plan.webhook == "https://chat.example/secret-path"
    assert "secret-path" not in repr(plan)


def test_what_is_wrong_is_said_once_and_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WATCHDOG_LIMIT_MIB", "much")
    monkeypatch.chdir(ROOT)
    with pytest.raises(PlanError):
        read_plan()
    assert capfd.readouterr().err.startswith("watchdog: WATCHDOG_LIMIT_MIB='much': ")


def test_the_program_prints_json_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_CONTAINER", "llm")
    asked = [sys.executable, "-m", "services.watchdog.settings"]
    assert json.loads(subprocess.run(asked, cwd=ROOT, capture_output=True, check=True).stdout)["container"] == "llm"
