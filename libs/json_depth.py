"""How deep a JSON text is nested, found before any parser recurses into it."""

import re

MOST = 64
"""Levels of objects and arrays that a body of the control plane may have."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = bytes.maketrans(b"[{]}", b"(())")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


def too_deep(text: bytes, most: int = MOST) -> bool:
    """Whether a JSON text is nested more than `most` levels deep. What is no JSON is left to the parser, if it is flat.

    Pairs of brackets are peeled off from the inside, a level at a time, so that the cost is bounded whatever was sent.
    """
    if text.count(b"[") + text.count(b"{") <= most:
        return False
    left = _STRING.sub(b"", text).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(most):
        peeled = left.replace(b"()", b"")
        if len(peeled) == len(left):
            break
        left = peeled
    return b"()" in left or left.count(b"(") > most
