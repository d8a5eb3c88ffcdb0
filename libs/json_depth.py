"""How deep a JSON text is nested, found before any parser recurses into it."""

import re
from itertools import accumulate

MOST = 64
"""Levels of objects and arrays that a body of the control plane may have."""

_STRINGS = re.compile(rb'(?:"(?:[^"\\]++|\\.)*+"?+[^"\[\]{}]*+)++', re.DOTALL)
"""Strings, the last perhaps without its end, and what stands between them. All of it is possessive: no byte is looked
at again from another beginning, so the time it takes grows with the text's length alone, whatever was sent."""
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


def too_deep(text: bytes, most: int = MOST) -> bool:
    """Whether a JSON text in UTF-8 is nested more than `most` levels deep, as far as it opens what it does not close.

    What is no JSON is left to the parser, if it is flat: none recurses beyond a bracket that closes too much.
    """
    if text.count(b"[") + text.count(b"{") <= most:
        return False
    steps = _STRINGS.sub(b"", text).translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0) > most
