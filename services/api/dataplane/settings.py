"""The limits of calls that other clients make through `/v1`."""

from pydantic import Field

from libs.settings import Settings
from libs.upstreams.types import TimeLimits


class DataPlaneSettings(Settings):
    """How long a caller's request may take. Its own `X-Deadline-Ms` replaces the total."""

    llm_connect_timeout_s: float = Field(
        default=2, gt=0, allow_inf_nan=False, description="Most seconds for the connection to the model server."
    )
    api_deadline_s: float = Field(
        default=600,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Most seconds a request under /v1 may take in all, where it brings no X-Deadline-Ms.",
    )
    api_first_byte_timeout_s: float = Field(
        default=60,
        gt=0,
        allow_inf_nan=False,
        description="Most seconds of silence before the first token of a stream under /v1.",
    )
    api_idle_timeout_s: float = Field(
        default=30, gt=0, allow_inf_nan=False, description="Most seconds of silence between two tokens under /v1."
    )

    api_max_prompt_bytes: int = Field(
        default=8_388_608, ge=1024, description="Longest request body in bytes under /v1, images in it included."
    )

    def limits(self) -> TimeLimits:
        """The limits of a request that brings none of its own."""
        return TimeLimits(
            connect_s=self.llm_connect_timeout_s,
            first_token_s=self.api_first_byte_timeout_s,
            idle_s=self.api_idle_timeout_s,
            total_s=self.api_deadline_s,
        )
