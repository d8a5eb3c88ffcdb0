"""What schemathesis does to each request before it is sent; the command line loads this file."""

from typing import Any, cast

import schemathesis

DEADLINE, AMPLE_MS = "X-Deadline-Ms", 20_000
COUNTS = ("n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens")
LONGEST = 2**63


def before_call(context: schemathesis.HookContext, case: Any, kwargs: dict[str, Any]) -> None:
    """Leave every valid deadline time enough, since one of a millisecond is kept too and is a 504; and write counts as
    integers of 64 bits, since to JSON schema 2.0 is an integer as well, and one of any length.
    """
    del context, kwargs
    headers: dict[str, Any] = case.headers or {}
    value = str(headers.get(DEADLINE, ""))
    if value.isdecimal() and 0 < int(value) < AMPLE_MS:
        headers[DEADLINE] = str(AMPLE_MS)
    if isinstance(case.body, dict):
        body = cast("dict[str, Any]", case.body)
        for name in COUNTS:
            count: object = body.get(name)
            if isinstance(count, int | float) and not isinstance(count, bool) and float(count).is_integer():
                body[name] = min(int(count), LONGEST)


schemathesis.hook(before_call)  # pyright: ignore[reportUnknownMemberType]
