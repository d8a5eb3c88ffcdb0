"""What people say about what they do."""

from typing import Annotated

from pydantic import StringConstraints

Words = Annotated[
    str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True, pattern=r"^[^\x00-\x1f\x7f]*$")
]
"""One line of text: it goes into rows, logs, alerts and command lines."""
