"""What services.watchdog reads from the environment. As a program it prints the plan as JSON, for `plan.read_plan`."""

import json
import re
import shlex
import sys
from dataclasses import asdict
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from libs.service_settings import ListenSettings
from libs.settings import Settings, SettingsError, load
from services.watchdog.plan import Plan

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i")
GPUS = re.compile(r"(?:\d+|GPU-[0-9a-fA-F-]+)(?:,(?:\d+|GPU-[0-9a-fA-F-]+))*")
CONTAINERS = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


def _words(command: str) -> str:
    shlex.split(command)  # a ValueError here, for an open quote, becomes the message
    return command


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must look like http://host:port/path")
    return url


def _docker_host(host: str) -> str:
    parts = urlsplit(host)
    if (parts.scheme == "unix" and parts.path.startswith("/")) or (parts.scheme in {"tcp", "http"} and parts.hostname):
        return host
    raise ValueError("must look like unix:///var/run/docker.sock or tcp://host:2375")


def _gpus(text: str) -> str:
    if not GPUS.fullmatch(text):
        raise ValueError("must be an index or a UUID as nvidia-smi names cards, or several with commas")
    if len(set(text.split(","))) < text.count(",") + 1:
        raise ValueError("names a card twice")
    return text


def _container(name: str) -> str:
    if not CONTAINERS.fullmatch(name):
        raise ValueError("must be the name of a container, or 12 characters or more of its id")
    return name


Command = Annotated[str, AfterValidator(_words)]
Address = Annotated[str, AfterValidator(_address)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class WatchdogSettings(Settings):
    """The watchdog over a graphics card's memory."""

    model_config = SettingsConfigDict(env_prefix="WATCHDOG_")

    reader: Literal["docker", "nvml", "command"] = Field(
        default="docker",
        description="How the memory is read: nvidia-smi in the container (docker), here through the driver's library "
        "(nvml), or by a command run here (command).",
    )
    container: Annotated[str, AfterValidator(_container)] | None = Field(
        default=None,
        description="Name of the container that is read (docker) and restarted, or its id: 12 characters or more.",
    )
    docker_host: Annotated[str, AfterValidator(_docker_host)] = Field(
        default="unix:///var/run/docker.sock",
        description="Where the Docker engine answers: unix:///path or tcp://host:port.",
    )
    gpu: Annotated[str, AfterValidator(_gpus)] = Field(
        default="0",
        description="Index or UUID of the card, as seen where it is read; of several with commas the fullest counts.",
    )
    read_command: Command | None = Field(
        default=None, description="Command in place of nvidia-smi (docker, command): prints used MiB, one line a card."
    )
    read_timeout_s: Seconds = Field(default=15, description="Most seconds that a reading may take.")
    limit_mib: float = Field(
        default=10_752, gt=0, allow_inf_nan=False, description="Used memory in MiB above which a reading counts."
    )
    readings: int = Field(default=3, ge=1, le=1000, description="Readings above it in a row that lead to a restart.")
    interval_s: Seconds = Field(default=60, description="Seconds from one reading to the next.")
    cooldown_s: float = Field(
        default=300, ge=0, le=86_400, allow_inf_nan=False, description="Seconds after a restart without another one."
    )
    budget: int = Field(
        default=3, ge=0, le=1000, description="Most restarts within WATCHDOG_BUDGET_WINDOW_S; 0 only watches."
    )
    budget_window_s: Seconds = Field(default=3600, description="Seconds over which restarts are counted.")
    drain_url: Address | None = Field(default=None, description="Address that is posted to before a restart.")
    drain_command: Command | None = Field(default=None, description="Command that is run here before a restart.")
    drain_timeout_s: Seconds = Field(
        default=30, description="Most seconds that each of them may take; the restart follows in any case."
    )
    restart_command: Command | None = Field(
        default=None, description="Command that restarts, run here in place of the Docker engine."
    )
    restart_timeout_s: Seconds = Field(
        default=60,
        description="Most seconds that a restart may take: beyond the grace by Docker, in all by a command.",
    )
    stop_grace_s: int = Field(
        default=30, ge=0, le=3600, description="Seconds the container has to end by itself before Docker kills it."
    )
    health_url: Address | None = Field(
        default=None, description="Address that answers 200 once what was restarted is back; unset, nobody waits."
    )
    health_timeout_s: Seconds = Field(default=300, description="Most seconds to wait for that.")
    metrics_port: int = Field(
        default=9103, ge=1, le=65535, description="Port of the health, readiness and metrics of services.watchdog."
    )


class WebhookSettings(Settings):
    """Whom the watchdog calls."""

    alert_webhook_url: SecretStr | None = Field(
        default=None,
        description="Address that gets each alert as JSON {kind, text, at, key}; unset, alerts are only logged.",
    )


def make_plan() -> Plan:
    """The plan of this environment. Raises `SettingsError`, which names each variable that cannot be read."""
    settings, webhook = load(WatchdogSettings), load(WebhookSettings).alert_webhook_url
    if settings.container is None and settings.reader == "docker":
        raise SettingsError("WATCHDOG_CONTAINER is needed: WATCHDOG_READER=docker reads in it")
    if settings.container is None and settings.restart_command is None:
        raise SettingsError("WATCHDOG_CONTAINER or WATCHDOG_RESTART_COMMAND is needed: what is to be restarted")
    values = settings.model_dump()
    for name in ("read_command", "drain_command", "restart_command"):
        values[name] = shlex.split(values[name] or "")
    for name in ("container", "drain_url", "health_url"):
        values[name] = values[name] or ""
    own = bool(values["read_command"]) and settings.reader != "nvml"
    values["cards"] = 0 if own else len(settings.gpu.split(","))
    values["read_command"] = values["read_command"] or [*NVIDIA_SMI, settings.gpu]
    return Plan(
        **values,
        host=load(ListenSettings).api_host,
        webhook=None if webhook is None else webhook.get_secret_value(),
    )


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(asdict(make_plan())))
    except SettingsError as error:
        sys.stderr.write(f"watchdog: {error}\n")
        sys.exit(2)
