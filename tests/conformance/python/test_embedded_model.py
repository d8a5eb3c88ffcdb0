"""The official client, the gateway, and a real model behind it: shape and conduct, since its prose is of no worth."""

import asyncio
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from openai.types.shared_params import ResponseFormatJSONSchema

from tests.conformance.house import ROOT, WELL, free_port, gateway
from tests.conftest import TEMPLATE
from tools.local_stack.postgres import EmbeddedPostgres

pytestmark = pytest.mark.xdist_group("conformance-embedded")
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name a colour."}]
VERDICT: ResponseFormatJSONSchema = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "schema": {
            "type": "object",
            "properties": {"allow": {"type": "boolean"}, "side": {"enum": ["buy", "sell"]}},
            "required": ["allow", "side"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def engine_url() -> Iterator[str]:
    """The embedded model, ready."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.local_stack.lexi"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "LEXI_PORT": str(port)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert f":{port}/v1" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture(scope="module")
def url(engine_url: str, postgres: EmbeddedPostgres) -> Iterator[str]:
    """A gateway in front of it."""
    postgres.ensure_database("conformance_embedded", template=TEMPLATE)
    with (
        tempfile.TemporaryDirectory(prefix="lexi-conformance-") as folder,
        gateway(Path(folder), postgres.url("conformance_embedded"), lexi_url=f"{engine_url}/v1", more=[]) as address,
    ):
        yield address


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    """The official client."""
    with OpenAI(base_url=url, api_key="full", max_retries=0, timeout=120) as made:
        yield made


def test_a_whole_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=WELL, messages=ASK, max_tokens=12)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert isinstance(choice.message.content, str)
    assert choice.finish_reason in {"stop", "length"}
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 12
    assert answer.usage.prompt_tokens > 0


def test_a_stream(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=WELL, messages=ASK, max_tokens=12, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(reasons) == 1
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert 1 <= chunks[-1].usage.completion_tokens <= 12


def test_the_stream_helper(client: OpenAI) -> None:
    words = {"structured_outputs": {"choice": ["red", "green"]}}
    with client.chat.completions.stream(model=WELL, messages=ASK, max_tokens=12, extra_body=words) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text
    assert text in {"red", "green"}


def test_an_answer_within_a_schema(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=WELL, messages=ASK, response_format=VERDICT, max_tokens=200, temperature=0
    )
    assert answer.choices[0].finish_reason == "stop"
    told = json.loads(answer.choices[0].message.content or "")
    assert set(told) == {"allow", "side"}
    assert isinstance(told["allow"], bool)
    assert told["side"] in {"buy", "sell"}


@pytest.mark.parametrize("field", [{"guided_choice": ["OK", "NO"]}, {"structured_outputs": {"choice": ["OK", "NO"]}}])
def test_one_of_two_words(client: OpenAI, field: dict[str, Any]) -> None:
    answer = client.chat.completions.create(model=WELL, messages=ASK, max_tokens=8, extra_body=field)
    assert answer.choices[0].message.content in {"OK", "NO"}
    assert answer.choices[0].finish_reason == "stop"


def test_what_it_cannot_do_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model=WELL, messages=ASK, extra_body={"guided_regex": "[a-z]+"})
    assert (caught.value.code, caught.value.param) == ("unsupported_by_upstream", "guided_regex")


def test_log_probabilities(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=WELL, messages=ASK, max_tokens=4, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content
    assert tokens
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)


def test_a_seed_repeats_an_answer(client: OpenAI) -> None:
    told = [
        client.chat.completions.create(model=WELL, messages=ASK, max_tokens=12, temperature=0.9, seed=11)
        .choices[0]
        .message.content
        for _ in range(2)
    ]
    assert told[0] == told[1]


def test_a_completion(client: OpenAI) -> None:
    answer = client.completions.create(model=WELL, prompt="Once upon a time", max_tokens=8)
    assert isinstance(answer.choices[0].text, str)
    assert answer.choices[0].finish_reason in {"stop", "length"}
    with client.completions.create(model=WELL, prompt="Once upon a time", max_tokens=8, stream=True) as stream:
        pieces = list(stream)
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices[0].finish_reason] == ["length"]


def test_a_response(client: OpenAI) -> None:
    answer = client.responses.create(model=WELL, input="Name a colour.", max_output_tokens=12)
    assert answer.output_text
    with client.responses.create(model=WELL, input="Name a colour.", max_output_tokens=12, stream=True) as stream:
        kinds = [event.type for event in stream]
    assert "response.output_text.delta" in kinds
    assert kinds[-1] in {"response.completed", "response.incomplete"}


def test_the_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [WELL]


async def test_leaving_frees_the_slot(url: str, engine_url: str) -> None:
    async def busy() -> int:
        async with httpx.AsyncClient(timeout=60, headers={"Connection": "close"}) as http:
            text = (await http.get(f"{engine_url}/metrics")).text
        found = re.search(r"^llamacpp:requests_processing (\d+)", text, re.MULTILINE)
        assert found is not None
        return int(found[1])

    client = AsyncOpenAI(base_url=url, api_key="full", max_retries=0, timeout=120)
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Count to a million."}]
    stream = await client.chat.completions.create(model=WELL, messages=long, max_tokens=1500, stream=True)
    await anext(aiter(stream))
    assert await busy() == 1
    await stream.close()
    async with asyncio.timeout(30):
        while await busy():  # noqa: ASYNC110 - it works in another process
            await asyncio.sleep(0.05)
