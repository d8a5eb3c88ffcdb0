"""Asking one stored decision again: whose refusal is final, and what counts as the same answer."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from libs.judgement.record import features_llm
from libs.judgement.types import Judgement
from libs.llm.client import Client
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.llm.types import Answer
from libs.replay.batch.ask import NoAnswer, Road, ask_again
from libs.replay.batch.held import Original, ReplayRow, call_id_of
from libs.replay.batch.rows import Batch
from tests.conftest import ROOT
from tests.unit.judgement_cases import AS_OF, CALL_ID, RULES, answer, good_inputs

PROMPTS = Prompts.build(Registry.load_quietly(ROOT / "configs" / "llm_prompts.yaml"))
DENIES: dict[str, Any] = {"allow": False, "reasons": ["EARNINGS"], "flags": []}
NOW = datetime(2026, 11, 22, tzinfo=UTC)


class Says:
    """A client with one answer to everything."""

    def __init__(self, given: Answer) -> None:
        self._given = given

    async def ask(self, key: str, inputs: object, **how: Any) -> Answer:
        return replace(self._given, prompt_key=key)


def batch_of(key: str) -> Batch:
    version = PROMPTS.registry.version(key, "1.1.0")
    return Batch(
        id=uuid4(),
        prompt_key=key,
        prompt_version=version.version,
        prompt_hash=version.sha256,
        since=NOW,
        until=NOW,
        most=10,
        asked_by="ann",
        state="running",
        total=1,
        done=0,
        failed=0,
        error=None,
        report=None,
        created_at=NOW,
        started_at=NOW,
        finished_at=None,
    )


def original(rationale: Answer) -> Original:
    inputs = good_inputs()
    policy = answer("policy", DENIES, text=json.dumps(DENIES))
    judgement = Judgement(inputs, rationale, policy, None, RULES.judge(inputs, "replay:1"))
    return Original(uuid4(), AS_OF, "replay:1", inputs.ticker, features_llm(judgement, shadow_mode=True))


async def asked(given: Answer, *, key: str = "policy", rationale: Answer | None = None) -> ReplayRow | NoAnswer:
    road = Road(
        client=cast("Client", Says(given)),
        prompts=PROMPTS,
        rules=RULES,
        limits=LLMSettings().limits(),
        places=lambda: 1,
        model=lambda: "Lexi",
    )
    return await ask_again(original(rationale or answer("rationale", "Up 1.0%.")), batch_of(key), road)


@pytest.mark.parametrize(
    ("error", "final"),
    [
        ("refused: answered 400: schema not supported", True),
        ("refused: answered 413", True),
        ("refused: answered 422: no", True),
        ("refused: the engine sent an error: grammar is too large", True),
        ("prompt_too_long: prompt and answer need 400 tokens", True),
        ("refused: answered 401: no such key", False),
        ("refused: answered 404: no such model", False),
        ("refused: answered 408", False),
        ("refused: answered 429: slow down", False),
        ("refused: answered 503: loading", False),
        ("connect_failed: nobody answered 400", False),
    ],
)
async def test_what_is_the_requests_own_fault_is_final(error: str, final: bool) -> None:
    came = await asked(answer("policy", None, text="", status="unavailable", error=error))
    assert isinstance(came, ReplayRow) is final
    assert (came.status if isinstance(came, ReplayRow) else "waits", came.error) == (
        "unavailable" if final else "waits",
        error,
    )


async def test_what_a_fallback_refuses_says_nothing() -> None:
    error = "refused: answered 400: schema not supported"
    came = await asked(answer("policy", None, text="", status="unavailable", error=error, upstream="other"))
    assert came == NoAnswer(error)


@pytest.mark.parametrize(
    ("now", "same"), [({"text": "Up 1.0%."}, True), ({"text": "Down."}, False), ("Up 1.0%.", True), ("Down.", False)]
)
async def test_a_rationale_is_the_same_by_its_prose_whatever_form_it_comes_in(now: Any, same: bool) -> None:
    before = answer("rationale", {"text": "Up 1.0%."}, text='{"text": "Up 1.0%."}')
    came = await asked(answer("rationale", now, text=json.dumps(now)), key="rationale", rationale=before)
    assert isinstance(came, ReplayRow)
    assert came.after["same"] is same


async def test_an_invalid_answer_is_never_the_same() -> None:
    before = answer("rationale", None, text="", status="invalid", error="empty")
    came = await asked(
        answer("rationale", None, text="", status="invalid", error="empty"), key="rationale", rationale=before
    )
    assert isinstance(came, ReplayRow)
    assert came.after["same"] is False


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"call_id": str(CALL_ID)}, CALL_ID),
        ({"call_id": "ffffffff-ffff-4fff-bfff-ffffffffffff"}, UUID("ffffffff-ffff-4fff-bfff-ffffffffffff")),
        ({"call_id": None}, None),
        ({}, None),
        ({"call_id": "nonsense"}, None),
        ({"call_id": 7}, None),
        ({"call_id": "ffffffff-ffff-7fff-bfff-ffffffffffff"}, None),
        ({"call_id": "e677d21f-dbff-7fff-bfff-ffffffffffff"}, None),
        (None, None),
    ],
)
def test_a_record_that_names_no_call_has_none(part: Any, found: UUID | None) -> None:
    assert call_id_of({"policy": part}, "policy") == found
