"""What `make run` starts, in which order, on which ports, and with which environment."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field, SecretStr

from libs.service_settings import ListenSettings

# The embedded model answers 44 tokens/s for everybody together, so it is asked less often and given more time.
EMBEDDED_MODEL_DEFAULTS = {
    "LLM_DEADLINE_S": "45",
    "LLM_CONNECT_TIMEOUT_S": "2",
    "LLM_FIRST_TOKEN_TIMEOUT_S": "40",
    "LLM_IDLE_TIMEOUT_S": "10",
    "FORECAST_INTERVAL_S": "30",
    "LLM_MAX_TOKENS": "2048",
}
PORT_VARIABLES = {
    "api": "API_PORT",
    "forecast": "FORECAST_METRICS_PORT",
    "jobs": "JOBS_METRICS_PORT",
    "analytics": "ANALYTICS_PORT",
}


class StackSettings(ListenSettings):
    """What decides which parts are started here and which are somewhere else."""

    llm_base_url: str | None = Field(None, description="A model server that already runs; unset: the embedded model.")
    database_url: SecretStr | None = Field(None, description="A Postgres that already runs; unset: the embedded one.")
    lexi_port: int = Field(8008, ge=1, le=65535, description="Port of the embedded model.")


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the stack. `port_variable` is what a user sets when the port is taken."""

    name: str
    module: str
    host: str
    port: int
    port_variable: str
    ready_path: str = "/ready"

    @property
    def command(self) -> tuple[str, ...]:
        """The line that starts it."""
        return sys.executable, "-m", self.module

    @property
    def url(self) -> str:
        """Where it answers, from this machine."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.port}"


def model_server(settings: StackSettings) -> Service | None:
    """The embedded model, unless a real one is named."""
    if settings.llm_base_url is not None:
        return None
    module = "tools.local_stack.lexi"
    return Service("lexi", module, "127.0.0.1", settings.lexi_port, "LEXI_PORT", ready_path="/health")


def services(settings: StackSettings) -> tuple[Service, ...]:
    """Our own processes in the order they are started."""
    host = settings.api_host
    ports = {
        "api": settings.api_port,
        "forecast": settings.forecast_metrics_port,
        "jobs": settings.jobs_metrics_port,
        "analytics": settings.analytics_port,
    }
    return tuple(Service(name, f"services.{name}", host, port, PORT_VARIABLES[name]) for name, port in ports.items())


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
