"""Bodies that are nested too deeply are refused before a parser recurses into them."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from libs.http_app import Edge, frame
from libs.json_depth import MOST, too_deep
from libs.keys import KeyRing

ROOT = Path(__file__).parents[2]
TEXTS = st.text(alphabet='[]{}"\\a', max_size=6)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((depth_of(inner) for inner in value.values()), default=0)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list):
        return 1 + max((depth_of(inner) for inner in value), default=0)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return 0


@given(VALUES, st.integers(min_value=0, max_value=6))
def test_it_says_what_walking_the_parsed_value_says(value: Any, most: int) -> None:
    assert too_deep(json.dumps(value).encode(), most) == (depth_of(value) > most)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 5000, b"[" * (MOST + 1), b"[[]" * 200])
def test_what_only_opens_is_too_deep(text: bytes) -> None:
    assert too_deep(text)


@pytest.mark.parametrize("text", [b"[]" * 1000, b"]" * 1000, b'["' + b"[" * 1000 + b'"]', b"{}[" * MOST])
def test_what_is_flat_passes_whatever_else_it_is(text: bytes) -> None:
    assert not too_deep(text)


def walked(text: bytes) -> bool:
    """The same, a byte at a time."""
    depth = deepest = 0
    inside = escaped = False
    for code in text:
        if inside:
            inside = escaped or code != ord('"')
            escaped = not escaped and code == ord("\\")
        elif code == ord('"'):
            inside = True
        else:
            depth += (code in b"[{") - (code in b"]}")
            deepest = max(deepest, depth)
    return deepest > MOST


@given(
    st.lists(st.sampled_from([b"[" * MOST, b"[", b"{", b"]", b"}" * 9, b'"', b"\\", b'\\"', b"a,", b"\n"]), max_size=40)
)
def test_it_reads_strings_as_a_parser_does_also_in_what_is_no_json(pieces: list[bytes]) -> None:
    assert too_deep(b"".join(pieces)) == walked(b"".join(pieces))


LONGEST = """
import resource
from libs.json_depth import MOST, too_deep
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for tail in (b'\\\\"', b"\\\\", b'"', b'"\\\\', b'a"', b"\\\\n", b"a", b'""[]'):
    assert too_deep(b"[" * (MOST + 1) + b'"' + tail * (2_000_000 // len(tail)))
assert not too_deep((b"[" * MOST + b"]" * MOST) * 15_000)
"""


def test_the_work_grows_with_the_length_alone() -> None:
    """An expression that tries again from each quote needs hours for the first of these."""
    done = subprocess.run([sys.executable, "-c", LONGEST], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def client(tmp_path: Path) -> httpx.AsyncClient:
    app = frame(title="t", keys=KeyRing.load(tmp_path / "keys.json"), checks={})

    @app.post("/value")
    async def value(request: Request) -> int:  # pyright: ignore[reportUnusedFunction]
        return len(await request.body())

    @app.post("/parsed")
    async def parsed(body: dict[str, Any]) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return body

    return httpx.AsyncClient(transport=httpx.ASGITransport(Edge(app, max_body_bytes=1_000_000)), base_url="http://t")


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize("path", ["/value", "/parsed"])
async def test_the_limit_holds_for_every_route(client: httpx.AsyncClient, path: str) -> None:
    headers = {"content-type": "application/json"}
    taken = await client.post(path, content=nested(MOST), headers=headers)
    refused = await client.post(path, content=nested(MOST + 1), headers=headers)
    assert taken.status_code == 200
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")
    assert f"{MOST} levels" in refused.json()["detail"]


async def test_it_is_found_across_pieces_and_not_in_forms(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(MOST + 1):
            yield b"["

    assert (await client.post("/value", content=pieces())).status_code == 400
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (await client.post("/value", content=b"[" * 1000, headers=form)).status_code == 200


NESTED = '{"a": ["\\"", ' + "[" * 300 + "]" * 300 + ', "\\""]}'


@pytest.mark.parametrize("path", ["/value", "/parsed"])
@pytest.mark.parametrize(
    "body",
    [
        *(text.encode(coding) for text in (NESTED, '{"a": 1}') for coding in ("utf-16", "utf-16-le", "utf-32-be")),
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\x00"}',
    ],
)
async def test_what_is_no_text_in_utf_8_is_refused(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    """Python's parser reads UTF-16 and UTF-32 as well, where brackets are found in other places."""
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert "UTF-8" in answer.json()["detail"]


async def test_text_in_utf_8_passes(client: httpx.AsyncClient) -> None:
    body = '{"a": "\u4e2d\U0001f600"}'.encode()
    answer = await client.post("/parsed", content=body, headers={"content-type": "application/json"})
    assert answer.json() == {"a": "\u4e2d\U0001f600"}
