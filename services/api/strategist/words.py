"""What people and brokers say, as it may be kept."""

from typing import Annotated

from pydantic import StringConstraints

LONGEST_DETAIL = 1000

Words = Annotated[
    str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True, pattern=r"^[^\x00-\x1f\x7f]*$")
]
"""One line of text: it goes into rows, logs, alerts and command lines."""


def printable(words: str) -> str:
    """Words of a broker as Postgres takes them: without NUL and lone surrogates, and not without end."""
    return words.replace("\x00", "").encode("utf-8", "ignore").decode()[:LONGEST_DETAIL]
