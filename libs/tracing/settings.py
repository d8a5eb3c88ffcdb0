"""Where traces go, under the names that OpenTelemetry gives these variables."""

from typing import Literal
from urllib.parse import unquote

from pydantic import Field, SecretStr, field_validator

from libs.settings import Flag, Settings

Sampler = Literal[
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
]


class TracingSettings(Settings):
    """Traces are off unless an endpoint is named."""

    otel_exporter_otlp_endpoint: str = Field(
        default="", description="Collector of traces (OTLP over HTTP), e.g. http://127.0.0.1:4318; off where unset."
    )
    otel_exporter_otlp_traces_endpoint: str = Field(
        default="", description="The same for traces alone, with its path, e.g. http://127.0.0.1:4318/v1/traces."
    )
    otel_exporter_otlp_headers: SecretStr = Field(
        default=SecretStr(""), description="Headers for the collector: name=value,name=value."
    )
    otel_exporter_otlp_timeout: float = Field(
        default=10, gt=0, le=60, allow_inf_nan=False, description="Most seconds for one delivery to the collector."
    )
    otel_traces_exporter: Literal["otlp", "none"] = Field(
        default="otlp", description="otlp, or none to trace nothing whatever endpoint is set."
    )
    otel_sdk_disabled: Flag = Field(default=False, description="Trace nothing, whatever endpoint is set.")
    otel_service_name: str = Field(default="", description="Name of the process in traces; lexi-NAME where unset.")
    otel_traces_sampler: Sampler = Field(
        default="parentbased_always_on", description="Which traces are kept; parentbased ones heed the caller's flag."
    )
    otel_traces_sampler_arg: float = Field(
        default=1, ge=0, le=1, allow_inf_nan=False, description="Share of traces kept by the traceidratio samplers."
    )
    otel_bsp_max_queue_size: int = Field(
        default=2048, ge=1, le=1_000_000, description="Most spans that wait for the collector; the oldest are dropped."
    )
    otel_bsp_schedule_delay: int = Field(
        default=5000, ge=1, le=600_000, description="Milliseconds between deliveries to the collector."
    )

    @field_validator("otel_exporter_otlp_endpoint", "otel_exporter_otlp_traces_endpoint")
    @classmethod
    def must_be_http(cls, value: str) -> str:
        """Accept HTTP addresses only: gRPC's exporter is not part of the extra."""
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value

    @field_validator("otel_exporter_otlp_headers")
    @classmethod
    def must_be_headers(cls, value: SecretStr) -> SecretStr:
        """Accept `name=value` pairs only."""
        for pair in filter(None, value.get_secret_value().split(",")):
            if not pair.partition("=")[0].strip() or "=" not in pair:
                raise ValueError("must be name=value,name=value")
        return value

    @property
    def endpoint(self) -> str:
        """Where traces go; empty where nothing is traced."""
        if self.otel_sdk_disabled or self.otel_traces_exporter == "none":
            return ""
        if self.otel_exporter_otlp_traces_endpoint:
            return self.otel_exporter_otlp_traces_endpoint
        base = self.otel_exporter_otlp_endpoint
        return f"{base.rstrip('/')}/v1/traces" if base else ""

    @property
    def headers(self) -> dict[str, str]:
        """The headers for the collector."""
        pairs = filter(None, self.otel_exporter_otlp_headers.get_secret_value().split(","))
        parts = (pair.partition("=") for pair in pairs)
        return {name.strip().lower(): unquote(value.strip()) for name, _, value in parts}
