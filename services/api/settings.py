"""What the control plane reads from the environment beyond what its parts read themselves."""

from pydantic import Field

from libs.settings import Settings


class ApiSettings(Settings):
    """Limits of the control plane."""

    llm_health_ttl_s: float = Field(
        default=10, ge=0.2, le=600, allow_inf_nan=False, description="Most seconds /llm/health may be behind the truth."
    )
    api_max_body_bytes: int = Field(
        default=2_097_152, ge=1024, description="Longest request body in bytes that a service of ours reads."
    )
