"""The shape in which the fake engine answers `/v1/embeddings`."""

import base64
import hashlib
import json
import math
import struct
from typing import Any

from tests.fakes.engine_forms import Asked, prompts


class EmbeddingForm:
    """`/v1/embeddings`: unit vectors that depend on the text alone, `dimensions` long (8 where not said)."""

    streams = False
    length = 0

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def whole(self) -> dict[str, Any]:
        asked = self._asked
        encoded = asked.body.get("encoding_format") == "base64"
        size = int(asked.body.get("dimensions") or 8)
        given = prompts(asked.body.get("input"))
        vectors = [vector(text, size) for text in given]
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(struct.pack(f"<{size}f", *values)).decode() if encoded else values,
            }
            for index, values in enumerate(vectors)
        ]
        tokens = asked.reply.tokens_in * len(given)
        counted = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        frame = {"id": f"embd-fake-{asked.number}", "object": "list", "created": 1, "model": asked.model}
        return {**frame, "data": data, "usage": counted}

    def opening(self) -> bytes:
        return b""

    def piece(self, number: int) -> bytes:
        raise IndexError(number)

    def finish(self) -> bytes:
        return b""

    def usage(self) -> bytes:
        return b""

    def done(self) -> bytes:
        return b""


def vector(text: object, size: int) -> list[float]:
    """A unit vector of a text."""
    seed = hashlib.sha256(json.dumps(text).encode()).digest()
    values = [float(seed[number % len(seed)]) - 127.5 + number // len(seed) for number in range(size)]
    norm = math.sqrt(sum(value * value for value in values))
    return [value / norm for value in values]
