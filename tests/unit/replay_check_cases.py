"""The golden set, and what checks it, for the tests of exact replay."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from libs.judgement.rules import Rules
from libs.llm.registry import Registry
from libs.replay.cases import Case, read_cases
from libs.replay.check import Checker, Difference
from tests.unit.judgement_cases import ROOT

GOLDEN = sorted((ROOT / "tests" / "data" / "golden").glob("*.jsonl"))
FORECASTS = [path for path in GOLDEN if not path.name.startswith("verdicts")]
PROMPTS = ROOT / "configs" / "llm_prompts.yaml"
RULES_FILE = ROOT / "configs" / "rules.yaml"
FAKE = ROOT / "tests" / "data" / "golden" / "fake_engine.jsonl"


@cache
def checker(*, prompts: Path = PROMPTS, rules: Path = RULES_FILE) -> Checker:
    return Checker(Registry.load_unlocked(prompts), Rules.load(rules))


def edited(tmp_path: Path, source: Path, old: str, new: str) -> Path:
    """A copy of a file with one place changed."""
    content = source.read_text(encoding="utf-8")
    assert old in content
    path = tmp_path / source.name
    path.write_text(content.replace(old, new, 1), encoding="utf-8")
    return path


@cache
def cases() -> tuple[Case, ...]:
    return tuple(read_cases(FAKE))


def a_case(wanted: Callable[[Case], bool]) -> Case:
    """The first case of that kind; the golden set has one of each."""
    return next(case for case in cases() if wanted(case))


def decided(case: Case) -> bool:
    return case.llm["policy"]["decision"] is not None


async def first(case: Case, how: Checker | None = None) -> Difference:
    found = await (how or checker()).check(case)
    assert found is not None
    return found


def changed(case: Case, path: str, value: Any) -> Case:
    """A case whose record says something else in one place."""
    llm = json.loads(json.dumps(case.llm))
    *way, last = path.split(".")
    place: Any = llm
    for step in way:
        place = place[step]
    assert place[last] != value
    place[last] = value
    return replace(case, llm=llm)
