"""What `make run` starts, in which order, on which ports, and with which environment."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field, SecretStr

from libs.service_settings import ListenSettings
from libs.settings import Flag
from libs.trading.broker.address import PAPER
from libs.trading.broker.settings import BrokerSettings

# The embedded model answers 44 tokens/s for everybody together, so it is asked less often and given more time.
EMBEDDED_MODEL_DEFAULTS = {
    "LLM_DEADLINE_S": "45",
    "LLM_CONNECT_TIMEOUT_S": "2",
    "LLM_FIRST_TOKEN_TIMEOUT_S": "40",
    "LLM_IDLE_TIMEOUT_S": "10",
    "FORECAST_INTERVAL_S": "30",
    "LLM_MAX_TOKENS": "2048",
}
LOOPBACK = "127.0.0.1"
STRATEGY = "follow-signal"
PORT_VARIABLES = {
    "api": "API_PORT",
    "forecast": "FORECAST_METRICS_PORT",
    "jobs": "JOBS_METRICS_PORT",
    "analytics": "ANALYTICS_PORT",
}


class StackSettings(ListenSettings, BrokerSettings):
    """What decides which parts are started here and which are somewhere else."""

    llm_base_url: str | None = Field(None, description="A model server that already runs; unset: the embedded model.")
    database_url: SecretStr | None = Field(None, description="A Postgres that already runs; unset: the embedded one.")
    lexi_port: int = Field(8008, ge=1, le=65535, description="Port of the embedded model.")
    example_strategy: Flag = Field(
        True, description="Whether `make run` runs examples/follow_signal.py; never on another broker than paper."
    )

    @property
    def runs_paper(self) -> bool:
        """Whether the paper broker is started here; with PAPER_URL it is somewhere else."""
        return self.broker == PAPER and self.paper_url is None

    @property
    def runs_strategy(self) -> bool:
        """Whether the example trades. It never does where orders might be real."""
        return self.broker == PAPER and self.example_strategy


@dataclass(frozen=True, slots=True)
class Program:
    """One process of the stack. One without an address is ready once it runs."""

    name: str
    module: str

    @property
    def command(self) -> tuple[str, ...]:
        """The line that starts it."""
        return sys.executable, "-m", self.module


@dataclass(frozen=True, slots=True)
class Service(Program):
    """One that listens. `port_variable` is what a user sets when the port is taken."""

    host: str
    port: int
    port_variable: str
    ready_path: str = "/ready"

    @property
    def url(self) -> str:
        """Where it answers, from this machine."""
        host = LOOPBACK if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.port}"


def model_server(settings: StackSettings) -> Service | None:
    """The embedded model, unless a real one is named."""
    if settings.llm_base_url is not None:
        return None
    module = "tools.local_stack.lexi"
    return Service("lexi", module, LOOPBACK, settings.lexi_port, "LEXI_PORT", ready_path="/health")


def services(settings: StackSettings) -> tuple[Service, ...]:
    """Our own processes in the order they are started."""
    host = settings.api_host
    ports = {
        "api": settings.api_port,
        "forecast": settings.forecast_metrics_port,
        "jobs": settings.jobs_metrics_port,
        "analytics": settings.analytics_port,
    }
    own = tuple(Service(name, f"services.{name}", host, port, PORT_VARIABLES[name]) for name, port in ports.items())
    # Nobody but our own processes speaks to the paper broker, so it stays on loopback wherever these listen.
    paper = Service("paper", "services.paper", LOOPBACK, settings.paper_port, "PAPER_PORT")
    return (paper, *own) if settings.runs_paper else own


def strategy() -> Program:
    """The example, which comes last: it uses all the others."""
    return Program(STRATEGY, "examples.follow_signal")


def environment(settings: StackSettings, database_url: str) -> Mapping[str, str]:
    """The environment of every child: the caller's, with what this stack knows filled in."""
    known = {
        "DATABASE_URL": database_url,
        "LOCAL_STATE": str(settings.local_state.resolve()),
        "PYTHONUNBUFFERED": "1",
    }
    given = {name: value for name, value in os.environ.items() if value}
    if settings.llm_base_url is None:
        known["LLM_BASE_URL"] = f"http://127.0.0.1:{settings.lexi_port}/v1"
        given = EMBEDDED_MODEL_DEFAULTS | given
    return given | known


def environment_of(program: Program, env: Mapping[str, str], *, settings: StackSettings) -> Mapping[str, str]:
    """The environment of one child: what all have, and what it alone is told."""
    if program.name == "paper":
        return {**env, "API_HOST": LOOPBACK}
    if program.name in {STRATEGY, "analytics"}:
        return {**env, "API_URL": f"http://{LOOPBACK}:{settings.api_port}"}
    return env
