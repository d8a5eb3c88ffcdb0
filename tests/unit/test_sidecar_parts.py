"""The parts of the sidecar that need no server: reach, fitting, device, words."""

import ctypes
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.llm.types import Answer, AnswerStatus
from services.sidecar.answers import NOT_LOADED, failure_of, invalid_model_id
from services.sidecar.device import Device, DeviceFinder, find_device
from services.sidecar.fitting import LEAST_ANSWER, answer_tokens, least_tokens, most_tokens, object_tokens
from services.sidecar.settings import SidecarConfigError, SidecarSettings, check_reach

OPEN = SidecarSettings()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_on_loopback_it_may_be_open(host: str) -> None:
    check_reach(OPEN, host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "lexi.example"])
def test_elsewhere_it_is_open_only_where_the_port_is_published_on_loopback(host: str) -> None:
    with pytest.raises(SidecarConfigError, match=r"SIDECAR_LEGACY_OPEN=0 .* SIDECAR_PUBLISHED_ON_LOOPBACK=1"):
        check_reach(OPEN, host)
    check_reach(SidecarSettings(sidecar_published_on_loopback=True), host)
    check_reach(SidecarSettings(sidecar_legacy_open=False), host)


def test_what_is_asked_for_is_asked_for_where_it_fits() -> None:
    assert answer_tokens("What is a stop?", 256, window=6144) == 256
    assert object_tokens("What is a stop?", 256, window=6144) == 256


@given(st.text(max_size=3000), st.integers(1, 10**9), st.integers(64, 8192))
def test_an_answer_never_exceeds_what_was_asked_nor_the_window(text: str, wanted: int, window: int) -> None:
    for tokens in (answer_tokens(text, wanted, window=window), object_tokens(text, wanted, window=window)):
        assert 1 <= tokens <= wanted
        assert tokens <= max(window, LEAST_ANSWER)
        assert tokens <= LEAST_ANSWER or most_tokens(text) + tokens <= window or len(text.encode()) + tokens <= window


@given(st.text(max_size=500))
def test_the_two_counts_stand_on_either_side(text: str) -> None:
    assert most_tokens(text) <= len(text.encode())
    assert least_tokens(text) * 5 <= len(text.encode())


@pytest.mark.parametrize(
    ("text", "tokens"),  # as SmolLM2 counts them, which has a token for each figure
    [
        ("The quick brown fox jumps over the lazy dog.", 10),
        ("2026-11-22 17:30:00 1234567.89", 30),
        ('{"ticker":"AAPL","confidence":0.75}', 14),
        ("株価は上昇した", 12),
        ("Курс акций вырос на 4%", 19),
        ("🙂" * 20, 40),
        ("\n" * 50, 13),
        ("a" * 300, 75),
        ("antidisestablishmentarianism", 5),
    ],
)
def test_the_long_count_is_long_enough(text: str, tokens: int) -> None:
    assert most_tokens(text) >= tokens


class Nvml:
    """The three functions that are called, answering as told."""

    def __init__(self, *, init: int = 0, count: int = 0, status: int = 0) -> None:
        self._init, self._count, self._status = init, count, status
        self.closed = False

    def nvmlInit_v2(self) -> int:  # noqa: N802 - the library's name
        return self._init

    def nvmlDeviceGetCount_v2(self, place: Any) -> int:  # noqa: N802 - the library's name
        ctypes.cast(place, ctypes.POINTER(ctypes.c_uint)).contents.value = self._count
        return self._status

    def nvmlShutdown(self) -> int:  # noqa: N802 - the library's name
        self.closed = True
        return 0


@pytest.mark.parametrize(
    ("nvml", "device"),
    [
        (Nvml(count=1), "cuda"),
        (Nvml(count=4), "cuda"),
        (Nvml(count=0), "cpu"),
        (Nvml(init=9, count=1), "cpu"),
        (Nvml(count=1, status=999), "cpu"),
        (object(), "cpu"),
    ],
)
def test_a_card_is_what_the_driver_finds(nvml: object, device: str) -> None:
    assert find_device(lambda _: nvml) == device
    assert not isinstance(nvml, Nvml) or nvml.closed == (nvml.nvmlInit_v2() == 0)


def test_without_a_driver_there_is_no_card() -> None:
    def missing(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    assert find_device(missing) == "cpu"


async def test_the_device_is_asked_for_once_in_a_while() -> None:
    asked: list[Device] = []

    def find() -> Device:
        asked.append("cuda")
        return "cuda"

    finder = DeviceFinder(find)
    assert [await finder.now(), await finder.now()] == ["cuda", "cuda"]
    assert len(asked) == 1


def answer(status: AnswerStatus, error: str) -> Answer:
    return Answer(
        status=status, text="", value=None, error=error, cached=False, call_id=uuid4(), model="m", upstream="u",
        prompt_key="k", prompt_version="1", prompt_hash="h", arm="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "words", "status"),
    [
        ("connect_failed: refused", NOT_LOADED["phi3"], 503),
        ("breaker_open: down", NOT_LOADED["phi3"], 503),
        ("unknown_upstream: gone", NOT_LOADED["phi3"], 503),
        ("refused: answered 404: secret prompt", NOT_LOADED["phi3"], 503),
        ("refused: answered 401", NOT_LOADED["phi3"], 503),
        ("refused: answered 400: maximum context length is 64", "The prompt is too long", 422),
        ("refused: answered 400: the model's context length is only 64 tokens", "The prompt is too long", 422),
        ("refused: answered 400: request exceeds the available context size", "The prompt is too long", 422),
        ("refused: answered 413: context_length_exceeded", "The prompt is too long", 422),
        ("refused: the engine sent an error: exceed_context_size_error", "The prompt is too long", 422),
        ("refused: answered 400: invalid role in this context", "Phi-3 did not answer properly (refused).", 502),
        ("refused: answered 400: secret prompt", "Phi-3 did not answer properly (refused).", 502),
        ("refused: answered 500: secret prompt", "Phi-3 did not answer properly (refused).", 502),
        ("prompt_too_long: x", "The prompt is too long", 422),
        ("no_slot: waited", "Phi-3 is busy", 503),
        ("overloaded: too many wait", "Phi-3 is busy", 503),
        ("deadline_exceeded: x", "Phi-3 did not answer in time.", 504),
        ("idle_timeout: x", "Phi-3 did not answer in time.", 504),
        ("broken_stream: secret prompt", "Phi-3 did not answer properly (broken_stream).", 502),
    ],
)
def test_every_failure_has_words_that_quote_no_engine(error: str, words: str, status: int) -> None:
    failure = failure_of(answer("unavailable", error), "phi3", window=6144, has_share=True)
    assert failure.error.startswith(words)
    assert failure.status == status
    assert "secret" not in failure.error
    assert failure_of(answer("unavailable", error), "phi3", window=6144, has_share=False).error == NOT_LOADED["phi3"]


@given(st.recursive(st.one_of(st.none(), st.floats(), st.text(), st.integers()), st.lists, max_leaves=5))
def test_a_wrong_model_id_can_always_be_answered(model_id: Any) -> None:
    failure = invalid_model_id(model_id)
    assert failure.error == "Invalid model_id specified. Choose 'hermes' or 'phi3'."
    assert set(failure.more) == {"specified_model_id"}
