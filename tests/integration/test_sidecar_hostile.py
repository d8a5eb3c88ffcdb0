"""Bodies and replies of all kinds: never a 5xx, never an invalid object, never a word of the prompt back."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.integration.sidecar_app import PROPOSAL, VALID, entries_of, sidecar, two_models
from tests.unit.sidecar_cases import by_the_contract

ROUTES = ("/generate/", "/generate/hermes/", "/generate/phi3/", "/propose_trade_adjustments/")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 256, 2**63, 10**40, 0.5, 1e308, "", " ", "hermes", "phi3", "256",
    "\x00", "\u202e\u200b", "\U0001f642" * 50, [], [1], {}, {"prompt": "x"}, "x" * 5000,
)  # fmt: skip
STATUSES = {200, 400, 413, 415, 422}
ROUNDS = 400


def some_body(chance: random.Random) -> bytes:
    """A body that is now and then well formed."""
    body: dict[str, Any] = {"prompt": "Adjust?"}
    for name in ("prompt", "max_length", "model_id", "more"):
        if chance.random() < 0.4:
            body[name] = chance.choice(VALUES)
    if chance.random() < 0.1:
        body.pop("prompt")
    text = json.dumps(body).encode()
    if chance.random() < 0.2:
        place = chance.randrange(len(text))
        text = text[:place] + bytes([chance.randrange(256)]) + text[place + chance.randrange(3) :]
    return text


def some_reply(chance: random.Random) -> str:
    """What a confused Phi-3 may say: its object, changed, cut, or with something around it."""
    said: dict[str, Any] = dict(PROPOSAL)
    for name in chance.sample(sorted(said), chance.randrange(3)):
        if chance.random() < 0.3:
            said.pop(name)
        else:
            said[name] = chance.choice(VALUES)
    text = json.dumps(said, ensure_ascii=chance.random() < 0.5)
    cut = text[: chance.randrange(len(text))]
    spoilt = (text, text, cut, f"```json\n{text}\n```", text * 2, text.replace(":", "", 1))
    return chance.choice(spoilt)


async def test_nothing_breaks_it_and_no_invalid_object_gets_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chance = random.Random(20260101)
    proposed, refused = 0, 0
    async with two_models() as (hermes, phi3), sidecar(monkeypatch, tmp_path, *entries_of(hermes, phi3)) as http:

        def reply(_body: dict[str, Any]) -> str:
            return some_reply(chance)

        phi3.reply = reply
        for _ in range(ROUNDS):
            path = chance.choice(ROUTES)
            answer = await http.post(
                path, content=some_body(chance), headers={"Content-Type": "application/json; charset=utf-8"}
            )
            assert answer.status_code in STATUSES, answer.text
            said = answer.json()
            if answer.status_code != 200:
                assert said["detail"]
            elif "error" in said:
                refused += 1
                assert set(said) <= {"error", "call_id", "specified_model_id"}
            elif "generated_text" in said:
                assert said == {"generated_text": "It fits the request."}
            else:
                proposed += 1
                found = said.get("phi3_proposal", said)
                assert by_the_contract(found), said
                assert found is said or set(said) == {"phi3_proposal", "hermes_assessment"}
    assert proposed > 20
    assert refused > 20


async def test_the_prompt_never_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = "position 48151623 of desk nine"
    async with two_models() as (hermes, phi3), sidecar(monkeypatch, tmp_path, *entries_of(hermes, phi3)) as http:
        for answered in (VALID, "garbage", ""):
            phi3.reply = answered
            for path in ROUTES:
                for more in ({}, {"max_length": -5}, {"max_length": "many"}, {"model_id": "gpt"}):
                    answer = await http.post(path, json={"prompt": secret, **more})
                    assert "48151623" not in answer.text
