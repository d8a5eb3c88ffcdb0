"""The bodies that old clients send. Fields that are not known are let be, as ever."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

DEFAULT_LENGTH = 256
HERMES = "hermes"


def _can_be_asked(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("there is nothing to answer")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds a lone surrogate, which is no text") from error
    return prompt


class Question(BaseModel):
    """A prompt, and how many new tokens the answer may have. A longer answer than fits is cut to what fits."""

    model_config = ConfigDict(frozen=True)

    prompt: Annotated[str, AfterValidator(_can_be_asked)]
    max_length: int = Field(default=DEFAULT_LENGTH, ge=1)


class RoutedQuestion(Question):
    """The same, and the model that is meant. Any value is taken here: a wrong one has an answer of its own."""

    model_id: Any = HERMES
