"""Facts about a made key, from which changes are planned."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from libs.llm.commands.evidence import FinishedEvaluation, FinishedReplay
from libs.llm.commands.plans import Change, Facts
from libs.llm.experiments import parse_buckets
from libs.llm.in_force import Activation, Arms, Ground, in_force
from libs.llm.registry import Registry
from libs.llm.types import PromptVersion
from tests.unit.llm_cases import PROMPTS, write_prompts

AT = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
KEY = "verdict"
GROUND = Ground("1.0.0", None, None)
VERSIONS = ("1.0.0", "1.1.0", "1.2.0")
REPLAY = FinishedReplay(UUID(int=7), AT, 120, "3 of 120 decisions flip.")
EVALUATION = FinishedEvaluation(
    UUID(int=8), "nightly", AT, 1000, "Lexi vllm", passed=True, sentences=("validity is 0.998",)
)
THIRD = """    "1.2.0":
      <<: *verdict
      system: You judge entries twice. Answer with JSON.
"""
WORDING = PROMPTS.replace("note:\n", f"{THIRD}note:\n", 1)


def plan_registry(folder: Path) -> Registry:
    """Three versions of `verdict`, none held against a lock."""
    return Registry.load_quietly(write_prompts(folder, WORDING))


def row(number: int, version: str, arms: Arms = (), *, who: str = "ann", ground: Ground = GROUND) -> Activation:
    """The activation of that number, a minute after the one before."""
    at = AT + timedelta(minutes=number)
    return Activation(number, KEY, version, arms, who=who, why=f"why {number}", ground=ground, at=at)


def facts(
    registry: Registry, *rows: Activation, replay: FinishedReplay | None = REPLAY, buckets: str = "", key: str = KEY
) -> Facts:
    """The facts after these activations, given oldest first; a passed evaluation is among them."""
    newest = tuple(reversed(rows))
    now = in_force(registry, key, buckets=parse_buckets(buckets), activations=newest)
    return Facts(key=key, in_force=now, history=newest, replay=replay, evaluation=EVALUATION)


def released(registry: Registry, version: str, key: str = KEY) -> PromptVersion:
    """A version as if its lock held it."""
    return replace(registry.version(key, version), released_at=AT)


def two(share: float, candidate: str = "1.1.0", control: str = "1.0.0") -> Arms:
    """Two arms, the candidate's share in per cent."""
    return ((control, 100 - share), (candidate, share))


def change(found: Change | str) -> tuple[str, Arms]:
    """What is to be appended, where something is."""
    assert isinstance(found, Change), found
    return found.version, found.arms
