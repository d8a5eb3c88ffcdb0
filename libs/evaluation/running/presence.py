"""What an error, or an upstream's heartbeat, says about whether the model is there."""

import re
from typing import Final

from libs.evaluation.running.row import Row
from libs.upstreams.types import UpstreamStatus

TURNED_DOWN: Final = re.compile(r"refused: answered (?:429|502|503)\b")
"""How an error begins of a server that speaks, and turns this question down."""
QUOTES: Final = re.compile(r"(?:refused|broken_stream):")
"""How an error begins that may quote what was asked."""


def is_turned_down(row: Row) -> bool:
    """Whether something at the server's address answered that it has no answer."""
    return row.status == "unavailable" and TURNED_DOWN.match(row.error or "") is not None


def is_there(status: UpstreamStatus) -> bool:
    """Whether the heartbeat finds the server alive, also where calls to it failed so that it is not asked for now."""
    return status.state in {"up", "busy"} or status.reason.startswith("not asked: ")


def without_quotes(error: str) -> str:
    """An error as anybody may see it: without what a server says of a question, which may be a prompt."""
    return ":".join(error.split(":")[:2]) if QUOTES.match(error) else error
