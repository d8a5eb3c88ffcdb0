"""Completions, embeddings, responses and models through the official client."""

import base64
import struct

import pytest
from openai import BadRequestError, OpenAI
from openai.types.responses import ResponseFunctionToolCall

from tests.conformance.conftest import TEXT
from tests.conformance.house import SLASHED, WELL, House

pytestmark = pytest.mark.xdist_group("conformance")


def test_a_completion(client: OpenAI, here: House) -> None:
    answer = client.completions.create(model=WELL, prompt="The desk is", max_tokens=8, logprobs=1, seed=3)
    assert answer.object == "text_completion"
    assert [choice.text for choice in answer.choices] == [TEXT]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == TEXT.split()
    assert answer.usage is not None
    assert (here.sent()["prompt"], here.sent()["seed"]) == ("The desk is", 3)


def test_completions_of_two_prompts(client: OpenAI) -> None:
    answer = client.completions.create(model=WELL, prompt=["One", "Two"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_a_streamed_completion(client: OpenAI) -> None:
    texts, reasons = ["", ""], dict[int, str]()
    with client.completions.create(model=WELL, prompt=["One", "Two"], stream=True) as stream:
        for choice in (choice for piece in stream for choice in piece.choices):
            texts[choice.index] += choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [TEXT, TEXT]
    assert reasons == {0: "stop", 1: "stop"}


def test_embeddings_as_the_client_asks_for_them(client: OpenAI, here: House) -> None:
    """It asks for base64 of its own accord, and gives floats."""
    answer = client.embeddings.create(model=WELL, input=["a limit order", "a market order"])
    assert here.sent()["encoding_format"] == "base64"
    assert [vector.index for vector in answer.data] == [0, 1]
    assert all(len(vector.embedding) == 8 for vector in answer.data)
    assert sum(value * value for value in answer.data[0].embedding) == pytest.approx(1, rel=1e-5)
    assert answer.usage.prompt_tokens > 0


def test_embeddings_in_both_formats(client: OpenAI) -> None:
    plain = client.embeddings.create(model=WELL, input="a limit order", encoding_format="float", dimensions=4)
    packed = client.embeddings.create(model=WELL, input="a limit order", encoding_format="base64", dimensions=4)
    text: object = packed.data[0].embedding
    assert isinstance(text, str)
    assert list(struct.unpack("<4f", base64.b64decode(text))) == pytest.approx(plain.data[0].embedding, rel=1e-6)


def test_a_response(client: OpenAI, here: House) -> None:
    answer = client.responses.create(model=WELL, input="How is the desk?", instructions="Be brief.", store=True)
    assert answer.status == "completed"
    assert answer.output_text == TEXT
    assert answer.usage is not None
    assert answer.usage.output_tokens == len(TEXT.split())
    assert here.sent()["instructions"] == "Be brief."
    assert here.sent()["store"] is False


def test_a_streamed_response(client: OpenAI) -> None:
    with client.responses.create(
        model=WELL, input=[{"role": "user", "content": "How is the desk?"}], stream=True
    ) as stream:
        events = list(stream)
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT


def test_the_stream_helper_of_responses(client: OpenAI) -> None:
    with client.responses.stream(model=WELL, input="How is the desk?") as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == final.output_text == TEXT


def test_a_response_calls_a_tool(client: OpenAI) -> None:
    answer = client.responses.create(
        model=WELL,
        input="What does AAPL cost?",
        tools=[{"type": "function", "name": "price", "parameters": {"type": "object"}, "strict": False}],
    )
    [call] = answer.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, call.arguments) == ("price", '{"ticker": "AAPL"}')


@pytest.mark.parametrize("field", ["previous_response_id", "conversation", "background"])
def test_nothing_is_stored_between_responses(client: OpenAI, field: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(
            model=WELL, input="And now?", extra_body={field: True if field == "background" else "resp_1"}
        )
    assert (caught.value.code, caught.value.param) == ("field_refused", field)


def test_the_models(client: OpenAI) -> None:
    models = client.models.list()
    ids = [model.id for model in models]
    assert ids[0] == WELL
    assert SLASHED in ids
    assert len(ids) == len(set(ids))
    assert {model.object for model in models} == {"model"}


@pytest.mark.parametrize("model", [WELL, SLASHED])
def test_one_model(client: OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model


def test_a_key_sees_its_own_models_only(here: House) -> None:
    with OpenAI(base_url=here.url, api_key="narrow", max_retries=0) as narrow:
        assert [model.id for model in narrow.models.list()] == [SLASHED]
