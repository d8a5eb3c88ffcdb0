"""How long an answer may be, so that prompt and answer fit the window together.

Only the engine counts tokens exactly, and asking it would cost a round trip. So the count here errs on the long side
for text of any language; random letters may have more. An engine that was started with the same window has the last
word.
"""

import re
from typing import Protocol

from libs.upstreams.dialects import BYTES_PER_TOKEN

TEMPLATE_TOKENS = 96
"""What the house's own words and the marks of a chat template take at most."""
COMPLAINT_TOKENS = 96
"""What a repair turn says is wrong with an answer."""
LONGEST_OBJECT = 1024
"""Tokens that an adjustment can sensibly have."""
LEAST_ANSWER = 16
"""Tokens that are asked for where by our count nothing is left: the engine may count fewer, and refuses if not."""

# In prose a token has more than three letters, and runs of white space have longer ones; anything else is counted for
# each byte.
_PIECE = re.compile(r" ?[A-Za-z]{1,3}|\s{1,3}|[^\sA-Za-z]")


class Fit(Protocol):
    """How many new tokens to ask for."""

    def __call__(self, prompt: str, max_length: int, *, window: int) -> int:
        """At most `max_length`, so that all fits `window`."""
        ...


def most_tokens(text: str) -> int:
    """A count that words, figures and source code of any script do not exceed."""
    return sum(1 if piece.isascii() else len(piece.encode()) for piece in _PIECE.findall(text))


def least_tokens(text: str) -> int:
    """A count that a text does not fall short of: what does not fit by it does not fit."""
    return len(text.encode()) // BYTES_PER_TOKEN


def answer_tokens(prompt: str, max_length: int, *, window: int) -> int:
    """New tokens for plain text: what was asked for, or what is left."""
    return _fitted(max_length, window - TEMPLATE_TOKENS, prompt)


def object_tokens(prompt: str, max_length: int, *, window: int) -> int:
    """New tokens for an object, such that a repair turn, which holds the first answer too, still fits."""
    wanted = min(max_length, LONGEST_OBJECT)
    return _fitted(wanted, window - 2 * TEMPLATE_TOKENS - COMPLAINT_TOKENS, prompt, answers=2)


def _fitted(wanted: int, room: int, prompt: str, *, answers: int = 1) -> int:
    if len(prompt.encode()) + answers * wanted <= room:
        return wanted  # no token is less than a byte
    left = (room - most_tokens(prompt)) // answers
    return max(min(wanted, left), min(wanted, LEAST_ANSWER))
