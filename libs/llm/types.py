"""The words of the client: prompt versions, rendered prompts, answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias
from uuid import UUID

from libs.upstreams.types import Constraint, Message, Sampling

AnswerStatus: TypeAlias = Literal["ok", "invalid", "unavailable"]


@dataclass(frozen=True, slots=True)
class PromptVersion:
    """One immutable version of a prompt. `sha256` covers everything that can change what is asked or accepted.

    `untrusted` names the inputs (headlines, posts) that never reach the template: they go out as JSON data, cleaned,
    in a message of their own between the system message and the user message.
    """

    key: str
    version: str
    system: str
    user_template: str
    inputs_schema: Mapping[str, Any]
    untrusted: tuple[str, ...]
    constraint: Constraint | None
    sampling: Sampling
    sha256: str
    sampling_fields: frozenset[str] = frozenset()
    released_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """The messages of one call with the version that made them."""

    prompt: PromptVersion
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Arm:
    """The version one unit was given. `name` is the arm's label, empty where no experiment runs."""

    version: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one `ask()`. It is returned, never raised: a model's failure is a result like any other.

    `text` is the reply as received (empty when none came), `value` the validated JSON, the chosen word, or for free
    text the text itself; None unless `status` is "ok". `model` is the model of the upstream entry that answered.

    Times count from the start of the question: `total_ms` to the end of a repair turn, `first_token_ms` to the first
    token of the first turn's reply (0 where none streamed), attempts before it included. `queue_ms` is the wait for a
    slot in all turns, `first_queue_ms` that before the first token; attempts that failed keep theirs to themselves.
    """

    status: AnswerStatus
    text: str
    value: Any
    error: str | None
    cached: bool
    call_id: UUID
    model: str
    upstream: str
    prompt_key: str
    prompt_version: str
    prompt_hash: str
    arm: str
    tokens_in: int = 0
    tokens_out: int = 0
    total_ms: float = 0.0
    queue_ms: float = 0.0
    first_queue_ms: float = 0.0
    first_token_ms: float = 0.0
    first_error: str | None = None
