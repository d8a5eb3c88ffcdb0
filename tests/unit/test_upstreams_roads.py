"""What an engine's refusal means: broken, full, or the request's own fault."""

import pytest

from libs.upstreams.roads import refused

FULL = (
    b'{"error":{"message":"The engine is currently busy and cannot accept new requests. Please try again later or on a'
    b' different instance.","type":"Service Unavailable","param":null,"code":503}}'
)
BACKLOG = b'{"error":{"message":"The engine has reached its prefill token backlog limit.","code":503}}'


@pytest.mark.parametrize("content", [FULL, BACKLOG])
def test_vllm_that_is_full_counts_as_busy_and_not_as_broken(content: bytes) -> None:
    error = refused(503, None, content)
    assert error.status == 429
    assert error.retryable
    assert "answered 503" in str(error)


@pytest.mark.parametrize("content", [b"", b"<html>no healthy backend</html>", b'{"error":{"message":"Loading model"}}'])
def test_any_other_503_is_a_failure(content: bytes) -> None:
    assert refused(503, None, content).status == 503


def test_the_words_of_a_full_engine_mean_nothing_under_another_status() -> None:
    assert refused(500, None, FULL).status == 500
    assert refused(400, None, FULL).status == 400
