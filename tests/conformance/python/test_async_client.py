"""The asynchronous client: the same surface, many at once, and leaving in the middle."""

import asyncio

import pytest
from openai import APIError, AsyncOpenAI, AuthenticationError
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.conformance.conftest import TEXT
from tests.conformance.house import SLASHED, WELL, House

pytestmark = pytest.mark.xdist_group("conformance")
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How is the desk?"}]


class Verdict(BaseModel):
    """What a model is asked to fill in."""

    allow: bool


async def streamed(client: AsyncOpenAI) -> str:
    """The text of a stream."""
    text = ""
    async with await client.chat.completions.create(model=WELL, messages=ASK, stream=True) as stream:
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    return text


async def whole(client: AsyncOpenAI) -> str:
    """The text of an answer in one piece."""
    answer = await client.chat.completions.create(model=WELL, messages=ASK)
    return answer.choices[0].message.content or ""


async def test_many_at_once(async_client: AsyncOpenAI) -> None:
    answers = await asyncio.gather(*(one(async_client) for one in (streamed, whole) for _ in range(20)))
    assert answers == [TEXT] * 40


async def test_every_endpoint(async_client: AsyncOpenAI) -> None:
    completion = await async_client.completions.create(model=WELL, prompt="The desk is")
    assert completion.choices[0].text == TEXT
    vectors = await async_client.embeddings.create(model=WELL, input=["one", "two"])
    assert [len(vector.embedding) for vector in vectors.data] == [8, 8]
    response = await async_client.responses.create(model=WELL, input="How is the desk?")
    assert response.output_text == TEXT
    parsed = await async_client.chat.completions.parse(model=WELL, messages=ASK, response_format=Verdict)
    assert parsed.choices[0].message.parsed == Verdict(allow=True)
    assert SLASHED in [model.id async for model in async_client.models.list()]
    assert (await async_client.models.retrieve(SLASHED)).id == SLASHED


async def test_the_stream_helpers(async_client: AsyncOpenAI) -> None:
    async with async_client.chat.completions.stream(model=WELL, messages=ASK) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == TEXT
    async with async_client.responses.stream(model=WELL, input="How is the desk?") as events:
        last = await events.get_final_response()
    assert last.output_text == TEXT


async def test_errors(async_client: AsyncOpenAI) -> None:
    with pytest.raises(AuthenticationError):
        await whole(async_client.with_options(api_key="wrong"))
    with pytest.raises(APIError) as caught:
        async with await async_client.chat.completions.create(model="cut", messages=ASK, stream=True) as stream:
            [_ async for _ in stream]
    assert caught.value.code == "broken_stream"


async def test_leaving_frees_the_slot(async_client: AsyncOpenAI, here: House) -> None:
    engine = here.engines[SLASHED]
    aborted, engine.gap_s = engine.aborted, 5.0
    try:
        stream = await async_client.chat.completions.create(model=SLASHED, messages=ASK, stream=True)
        await anext(aiter(stream))
        assert engine.active == 1
        await stream.close()
        async with asyncio.timeout(10):
            while engine.active or engine.aborted == aborted:  # noqa: ASYNC110 - the engine runs in another thread
                await asyncio.sleep(0.01)
    finally:
        engine.gap_s = 0.0
