"""The whole path with the real client, registry and prompts, over an engine that plays recorded texts."""

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from libs.judgement.assess import Manner, assess
from libs.judgement.inputs import prompt_inputs
from libs.judgement.record import features_llm, inputs_from_record
from libs.judgement.types import Inputs
from libs.llm.calls import Recorder
from libs.llm.client import Client
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.settings import load
from libs.upstreams.playback import Playback
from tests.unit.judgement_cases import AS_OF, RULES, good_inputs

PROMPTS = Path(__file__).parents[2] / "configs" / "llm_prompts.yaml"
REGISTRY = Registry.load_unlocked(PROMPTS)
REPLAY = "replay:1"
EXPLANATION = "AAPL is expected to move 1.0% from 100 to 101."
ALLOWED = json.dumps({"allow": True, "reasons": [], "flags": []})


def explained(version: str = "1.0.0") -> str:
    """The explanation in the form that version asks for: plain text, or JSON with a `text`."""
    free = REGISTRY.version("rationale", version).constraint is None
    return EXPLANATION if free else json.dumps({"text": EXPLANATION})


def client_of(playback: Playback, folder: Path, *, buckets: str = "") -> Client:
    """The real client; its recorder is not started, so nothing reaches a database."""
    return Client(
        engine=playback,
        prompts=Prompts.build(REGISTRY, buckets),
        cache=None,
        recorder=Recorder(create_async_engine("postgresql+asyncpg://nowhere/none"), service="test", state_dir=folder),
        settings=load(LLMSettings),
    )


def playback_of(inputs: Inputs, texts: Mapping[str, str], *, feed: str, version: str | None = None) -> Playback:
    """An engine that answers what the inputs render to, and nothing else."""
    variables = prompt_inputs(inputs, RULES, feed=feed)
    recorded: list[Any] = []
    for key, text in texts.items():
        prompt = REGISTRY.active(key) if version is None else REGISTRY.version(key, version)
        recorded.append((REGISTRY.render(prompt, variables).messages, text))
    return Playback.of_texts(recorded, model="Lexi")


@pytest.mark.parametrize("feed", [REPLAY, "file:prices.csv"])
@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
async def test_a_forecast_is_explained_and_judged(tmp_path: Path, feed: str, version: str) -> None:
    inputs = good_inputs()
    playback = playback_of(inputs, {"rationale": explained(version), "policy": ALLOWED}, feed=feed, version=version)
    manner = Manner(versions={"rationale": version, "policy": version})
    judgement = await assess(inputs, client=client_of(playback, tmp_path), rules=RULES, feed=feed, manner=manner)
    record = features_llm(judgement, True)
    assert record["rationale"]["text"] == EXPLANATION
    assert record["rationale"]["status"] == "ok"
    assert record["rationale"]["ungrounded_numbers"] == []
    assert record["policy"]["raw"] == ALLOWED
    assert record["policy"]["decision"] == {"allow": True, "reasons": [], "flags": []}
    assert record["policy"]["prompt_version"] == version
    assert record["policy"]["prompt_hash"] == REGISTRY.version("policy", version).sha256
    assert record["policy"]["model"] == "Lexi"
    assert record["policy"]["shadow_allow"] is True
    assert inputs_from_record(record) == inputs


@pytest.mark.parametrize(
    "reply",
    [
        "Sure! " + ALLOWED,
        ALLOWED.replace("true", '"true"'),
        ALLOWED.replace("true", "1"),
        ALLOWED[:-1] + ', "note": "x"}',
        ALLOWED.replace("[]", '["BECAUSE"]', 1),
        "",
        "Yes.",
    ],
)
async def test_nonsense_is_invalid_and_leaves_the_rationale_alone(tmp_path: Path, reply: str) -> None:
    inputs = good_inputs()
    playback = playback_of(inputs, {"rationale": explained(), "policy": reply}, feed=REPLAY)
    judgement = await assess(inputs, client=client_of(playback, tmp_path), rules=RULES, feed=REPLAY)
    record = features_llm(judgement, False)
    assert record["policy"]["status"] == "invalid"
    assert record["policy"]["raw"] == reply
    assert record["policy"]["decision"] is None
    assert record["policy"]["shadow_allow"] is False
    assert record["policy"]["rules"] == {"allow": True, "reasons": []}
    assert record["rationale"]["status"] == "ok"


async def test_an_engine_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    inputs = good_inputs()
    playback = playback_of(inputs, {"policy": ALLOWED}, feed=REPLAY)
    judgement = await assess(inputs, client=client_of(playback, tmp_path), rules=RULES, feed=REPLAY)
    record = features_llm(judgement, False)
    assert record["rationale"]["status"] == "unavailable"
    assert record["rationale"]["error"]
    assert record["policy"]["decision"] == {"allow": True, "reasons": [], "flags": []}


async def test_inputs_that_do_not_fit_the_prompt_are_our_fault_and_kept_in_the_row(tmp_path: Path) -> None:
    inputs = good_inputs(ticker="A" * 40)
    judgement = await assess(inputs, client=client_of(Playback([]), tmp_path), rules=RULES, feed=REPLAY)
    record = features_llm(judgement, False)
    for part in ("rationale", "policy"):
        assert record[part]["status"] == "skipped"
        assert "ticker" in record[part]["error"]


async def test_the_arm_follows_the_ticker_and_its_day(tmp_path: Path) -> None:
    versions: set[str] = set()
    for day in range(12):
        inputs = good_inputs(as_of=AS_OF + timedelta(days=day), facts={}, earnings_in_days=None)
        drawn: list[tuple[str, str]] = []
        for _ in range(2):
            client = client_of(Playback([]), tmp_path, buckets="policy:1.0.0,1.1.0")
            judgement = await assess(inputs, client=client, rules=RULES, feed=REPLAY)
            assert judgement.policy is not None
            drawn.append((judgement.policy.prompt_version, judgement.policy.arm))
        assert drawn[0] == drawn[1]
        assert drawn[0][0] == drawn[0][1]
        versions.add(drawn[0][0])
    assert versions == {"1.0.0", "1.1.0"}


@pytest.mark.parametrize("key", ["rationale", "policy"])
def test_every_version_takes_the_variables_whatever_is_unknown(key: str) -> None:
    bare = good_inputs(
        factors={}, liquidity_usd=None, coverage_pct=None, facts={}, earnings_in_days=None, headlines=("x" * 400,) * 12
    )
    for prompt in REGISTRY.versions(key).values():
        for inputs in (good_inputs(), bare):
            for feed in (REPLAY, "ccxt:kraken"):
                assert REGISTRY.render(prompt, prompt_inputs(inputs, RULES, feed=feed)).messages
