"""Where our services listen and where they keep what must not live in Postgres."""

from pathlib import Path

from pydantic import Field

from libs.settings import Settings


class ListenSettings(Settings):
    """Addresses and places that every service of the house shares."""

    api_host: str = Field(default="127.0.0.1", description="Address every service of ours listens on.")
    api_port: int = Field(default=8001, ge=1, le=65535, description="Port of services.api.")
    analytics_port: int = Field(default=8002, ge=1, le=65535, description="Port of services.analytics.")
    forecast_metrics_port: int = Field(
        default=9101, ge=1, le=65535, description="Port of the health, readiness and metrics of services.forecast."
    )
    jobs_metrics_port: int = Field(
        default=9102, ge=1, le=65535, description="Port of the health, readiness and metrics of services.jobs."
    )
    api_keys_file: Path | None = Field(
        default=None, description="File with the hashed keys; keys.json in LOCAL_STATE where unset."
    )
    local_state: Path = Field(
        default=Path(".local"), description="Folder for what must work without Postgres: keys, spooled calls, logs."
    )

    @property
    def keys_path(self) -> Path:
        """The key file: `API_KEYS_FILE`, else `keys.json` in `LOCAL_STATE`."""
        return self.api_keys_file or self.local_state / "keys.json"
