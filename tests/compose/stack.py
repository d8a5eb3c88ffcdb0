"""The Compose stack as a new user meets it: a copy of the project, `make secrets`, `docker compose up -d`."""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.acceptance.stack import FOREIGN, ROOT, eventually, free_ports
from tests.compose.model import HostModel

PORTS = {
    "API_PORT": "8001",
    "ANALYTICS_PORT": "8002",
    "FORECAST_METRICS_PORT": "9101",
    "JOBS_METRICS_PORT": "9102",
}
"""Variables that choose where a service is published on this machine, and what the docs call it."""
IMAGES = {f"LEXI_{name}_IMAGE": f"lexi-{name.lower()}:compose-test" for name in ("GATEWAY", "FULL", "TOOLS", "MODEL")}
"""Names of their own, so that nobody's images are replaced by those of a test."""
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "results", "secrets", "*.pyc")
KEPT = (".dockerignore", ".env.example", ".env.template")
BUILD_S = 1800.0


def missing_engine() -> str | None:
    """What is missing where no Docker engine answers, None where one does."""
    for command in (["docker", "version"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except FileNotFoundError:
            return "make compose-test needs Docker, and there is no `docker` on the path"
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()[-1]
            return f"make compose-test needs a running Docker engine; `{' '.join(command)}` says: {said}"
    return None


def copy_project(folder: Path) -> None:
    """The project as a clone has it, so that secrets, `.env` and state are this test's own."""
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT, symlinks=True)
    for name in KEPT:
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")


class ComposeStack:
    """One project of Compose in a folder of its own, and what a person does with it."""

    def __init__(self, folder: Path, *, model: HostModel, profiles: str = "paper") -> None:
        self.folder = folder
        self.model = model
        self.project = f"lexitest-{uuid4().hex[:8]}"
        self.ports = free_ports(tuple(PORTS))
        self.profiles = profiles
        self.settings = {
            "LLM_BASE_URL": f"http://host.docker.internal:{model.port}/v1",
            "FORECAST_INTERVAL_S": "2",
            "MAX_ORDERS_PER_MIN": "600",
        }

    def prepare(self, *, secrets: Path | None = None) -> None:
        """Everything before `up`: the copy, the secrets (or those of another stack), `.env`."""
        copy_project(self.folder)
        if secrets is not None:
            shutil.copytree(secrets, self.folder / "secrets")
        self.run("make", "secrets", check=True)
        if self.model.engine.api_key:
            (self.folder / "secrets" / "llm_api_key").write_text(f"{self.model.engine.api_key}\n")
        lines = self.ports | self.settings
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))

    def environment(self) -> dict[str, str]:
        """The shell's, without settings of a stack, and with this project's name."""
        known = {name: value for name, value in os.environ.items() if not name.startswith((*FOREIGN, "COMPOSE_"))}
        for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", *PORTS):
            known.pop(name, None)
        return known | IMAGES | {"COMPOSE_PROJECT_NAME": self.project, "COMPOSE_PROFILES": self.profiles}

    def run(self, *command: str, check: bool = False, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """A command in the project's folder."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=timeout_s
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def compose(self, *words: str, check: bool = True, timeout_s: float = 300) -> str:
        """`docker compose …`; what it printed on stdout."""
        return self.run("docker", "compose", *words, check=check, timeout_s=timeout_s).stdout

    def build(self) -> float:
        """Build the images; seconds it took."""
        begun = time.monotonic()
        self.compose("--profile", "tools", "build", timeout_s=BUILD_S)
        return time.monotonic() - begun

    def up(self) -> float:
        """`docker compose up -d`, and wait until every service is healthy; seconds it took."""
        begun = time.monotonic()
        done = self.run("docker", "compose", "up", "-d", "--wait", timeout_s=900)
        assert done.returncode == 0, f"{done.stderr[-3000:]}\n{self.logs()}"
        return time.monotonic() - begun

    def down(self) -> None:
        """Take everything away, volumes too."""
        self.run("docker", "compose", "--profile", "*", "down", "-v", "--remove-orphans", "--timeout", "10")

    def logs(self, *services: str, lines: int = 15) -> str:
        """The end of the services' logs."""
        return self.run("docker", "compose", "logs", "--no-color", "--tail", str(lines), *services).stdout

    def container(self, service: str) -> str:
        """The id of a service's container, also of one that ended."""
        return self.compose("ps", "-a", "-q", service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """What `docker inspect` says about it."""
        return json.loads(self.run("docker", "inspect", self.container(service), check=True).stdout)[0]

    def services(self) -> set[str]:
        """Services that have a container."""
        return set(self.compose("ps", "-a", "--services").split())

    def key(self) -> str:
        """The operator's key."""
        return (self.folder / "secrets" / "operator.key").read_text().strip()

    def get(self, port: str, path: str, *, body: object = None, timeout_s: float = 60) -> tuple[int, Any]:
        """Status and JSON (or text) of a route, asked with the operator's key; a POST where there is a body."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[port]}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key()}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read()
        text = raw.decode()
        return status, json.loads(text) if text.startswith(("{", "[")) else text

    def sql(self, statement: str) -> list[str]:
        """Rows of a query, columns joined by `|`."""
        psql = 'psql -U "${POSTGRES_USER:-postgres}" -d "${POSTGRES_DB:-$POSTGRES_USER}" -X -q -t -A -v ON_ERROR_STOP=1'
        found = self.compose("exec", "-T", "postgres", "sh", "-c", f'{psql} -c "$1"', "sh", statement)
        return found.splitlines()

    def ready(self, port: str) -> tuple[int, str]:
        """Status and lines of `/ready`; 0 while nobody answers."""
        try:
            return self.get(port, "/ready", timeout_s=10)
        except OSError as error:
            return 0, str(error)

    def until_ready(self, *ports: str) -> None:
        """Wait until these processes say that they are ready."""
        for port in ports or tuple(PORTS):
            eventually(lambda port=port: self.ready(port)[0] == 200 or None, what=f"{port} is ready", within_s=240)


ASK_BROKER = """
import json, os, sys, urllib.request
secret = lambda name: open(os.environ[name]).read().strip()
keys = {"APCA-API-KEY-ID": secret("PAPER_KEY_ID_FILE"), "APCA-API-SECRET-KEY": secret("PAPER_SECRET_KEY_FILE")}
for path in ("positions", "orders"):
    asked = urllib.request.Request(os.environ["PAPER_URL"] + "/v2/" + path, headers=keys)
    print(urllib.request.urlopen(asked, timeout=10).read().decode())
"""


def at_the_broker(stack: ComposeStack) -> tuple[Any, Any]:
    """Positions and open orders as the paper broker itself has them; it is not published, so jobs asks."""
    shown = stack.compose("exec", "-T", "jobs", "python", "-c", ASK_BROKER)
    positions, orders = (json.loads(line) for line in shown.splitlines())
    return positions, orders


def latest(stack: ComposeStack) -> list[dict[str, Any]]:
    """The newest forecasts, none while the api cannot say."""
    status, signals = stack.get("API_PORT", "/signals/latest")
    return signals if status == 200 else []


def judged(stack: ComposeStack, *, status: str = "ok") -> Callable[[], dict[str, Any] | None]:
    """A look for a forecast with a side whose policy has a status."""

    def look() -> dict[str, Any] | None:
        found = [each for each in latest(stack) if each["llm"]["policy"]["status"] == status]
        return next((each for each in found if each["llm"]["inputs"]["signal"]["side"] != "none"), None)

    return look
