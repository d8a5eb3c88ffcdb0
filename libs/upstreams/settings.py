"""Where Lexi answers, and which file lists the places that answer."""

from pathlib import Path

from pydantic import Field, SecretStr

from libs.settings import Settings


class UpstreamSettings(Settings):
    """Settings of the engines' side. The `LLM_*` ones fill the entry `lexi` of the file."""

    llm_base_url: str = Field(
        default="http://127.0.0.1:8008/v1", description="Where Lexi answers: the base address of its OpenAI API."
    )
    llm_model: str = Field(default="Lexi", description="The model name Lexi is asked for.")
    llm_api_key: SecretStr | None = Field(default=None, description="The key Lexi asks for, if it asks for one.")
    llm_max_tokens: int = Field(
        default=4096, gt=0, description="Lexi's context window in tokens: a prompt that cannot fit is refused unsent."
    )
    upstreams_file: Path = Field(
        default=Path("configs/upstreams.yaml"), description="The file that lists the model servers and their shares."
    )
