"""What services.sidecar reads from the environment beyond what its parts read themselves."""

from ipaddress import ip_address
from pathlib import Path

from pydantic import Field, SecretStr

from libs.settings import Flag, Settings


class SidecarConfigError(Exception):
    """The sidecar would be open to the network; the message names the settings."""


class SidecarSettings(Settings):
    """The older interface for Hermes and Phi-3."""

    sidecar_port: int = Field(default=8000, ge=1, le=65535, description="Port of services.sidecar.")
    sidecar_legacy_open: Flag = Field(
        default=True, description="Whether the sidecar asks no key, as old clients expect; it is then on loopback only."
    )
    sidecar_published_on_loopback: Flag = Field(
        default=False,
        description="Says of a container that its port is published on loopback only, so that it may be open inside.",
    )
    sidecar_legacy_status: Flag = Field(
        default=True, description="Whether errors about the models come with status 200, as old clients expect."
    )
    sidecar_deadline_s: float = Field(
        default=60, gt=0, le=3600, allow_inf_nan=False, description="Most seconds an answer of the sidecar may take."
    )
    sidecar_max_requests: int = Field(
        default=64, ge=1, description="Requests the sidecar takes at once; more are refused with 503."
    )
    sidecar_max_body_bytes: int = Field(
        default=262_144, ge=1024, description="Longest request body in bytes that the sidecar reads."
    )
    hermes_ctx: int = Field(
        default=6144, ge=64, description="Tokens that prompt and answer of the sidecar's models have together."
    )
    micro_llm_model_path: Path | None = Field(
        default=None, description="The file of Phi-3's model, for phi3_model_file_exists of the sidecar's /health."
    )
    sidecar_prompts_file: Path = Field(
        default=Path("configs/sidecar_prompts.yaml"), description="File of the words around the sidecar's prompts."
    )


class RecordSettings(Settings):
    """Where calls are kept; the sidecar also runs without a database."""

    database_url: SecretStr | None = Field(
        default=None, description="A Postgres for the record of the sidecar's calls."
    )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on reaches no other machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_reach(settings: SidecarSettings, host: str) -> None:
    """Refuse to be open to the network. Raises `SidecarConfigError` naming what to set."""
    if settings.sidecar_legacy_open and not is_loopback(host) and not settings.sidecar_published_on_loopback:
        raise SidecarConfigError(
            f"API_HOST={host} is not loopback, and SIDECAR_LEGACY_OPEN=1 asks no key: anybody there could use the "
            "models. Set SIDECAR_LEGACY_OPEN=0 to ask for keys, or, in a container whose port is published on loopback "
            "only, SIDECAR_PUBLISHED_ON_LOOPBACK=1"
        )
