"""How models are asked where neither the call nor the prompt version says otherwise."""

from pathlib import Path

from pydantic import Field, field_validator

from libs.llm.errors import ExperimentError
from libs.llm.experiments import parse_buckets
from libs.settings import Settings
from libs.upstreams.types import Sampling, TimeLimits


class LLMSettings(Settings):
    """Sampling, limits, experiments and cache of our own calls."""

    llm_temperature: float = Field(
        default=0.2,
        ge=0,
        le=2,
        allow_inf_nan=False,
        description="Randomness of answers where a prompt version sets none.",
    )
    llm_top_p: float = Field(
        default=0.9, gt=0, le=1, allow_inf_nan=False, description="Nucleus sampling where a prompt version sets none."
    )
    llm_max_output_tokens: int = Field(
        default=512, ge=1, description="Longest answer in tokens where a prompt version sets none."
    )
    llm_deadline_s: float = Field(
        default=20,
        gt=0,
        allow_inf_nan=False,
        description="Most seconds a call may take, waiting, retries and repair included.",
    )
    llm_connect_timeout_s: float = Field(
        default=2, gt=0, allow_inf_nan=False, description="Most seconds for the connection to the model server."
    )
    llm_first_token_timeout_s: float = Field(
        default=10, gt=0, allow_inf_nan=False, description="Most seconds of silence before the first token."
    )
    llm_idle_timeout_s: float = Field(
        default=5, gt=0, allow_inf_nan=False, description="Most seconds of silence between two tokens."
    )
    llm_ab_buckets: str = Field(
        default="", description="Experiments as key:v1,v2;key2:v1 (equal split) or key:v1@90,v2@10 (weights)."
    )
    llm_cache_ttl_s: float = Field(
        default=86400, ge=0, allow_inf_nan=False, description="Seconds a stored reply may answer again; 0 stores none."
    )
    prompts_file: Path = Field(default=Path("configs/llm_prompts.yaml"), description="File of the prompts' versions.")

    @field_validator("llm_ab_buckets")
    @classmethod
    def must_parse(cls, value: str) -> str:
        """Refuse what cannot be read; whether its versions exist is checked beside the prompts."""
        try:
            parse_buckets(value)
        except ExperimentError as error:
            raise ValueError(str(error)) from error
        return value

    @property
    def prompts_lock(self) -> Path:
        """The lock beside the prompts' file."""
        return self.prompts_file.with_suffix(".lock")

    def sampling(self) -> Sampling:
        """Sampling where nothing else is said."""
        return Sampling(temperature=self.llm_temperature, top_p=self.llm_top_p, max_tokens=self.llm_max_output_tokens)

    def limits(self) -> TimeLimits:
        """The limits of a call that brings none of its own."""
        return TimeLimits(
            connect_s=self.llm_connect_timeout_s,
            first_token_s=self.llm_first_token_timeout_s,
            idle_s=self.llm_idle_timeout_s,
            total_s=self.llm_deadline_s,
        )
