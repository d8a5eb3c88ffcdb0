"""From what was asked for to a run that can begin: the cases with their twins in a folder, and the plan."""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from uuid import uuid4

from libs.evaluation.cases.case import EvalCase
from libs.evaluation.cases.dataset import CaseFile, DatasetInfo, check, select, write_cases
from libs.evaluation.cases.injection import injection_twins, meets_its_rule
from libs.evaluation.cases.masked import masked_twins
from libs.evaluation.running.folder import Folder
from libs.evaluation.running.plan import Dataset, Pinned, Plan, Prices
from libs.judgement.assess import POLICY
from libs.judgement.rules import RULES_FILE, Rules
from tools.llm_eval.arguments import BUNDLED
from tools.llm_eval.bundled import bundled_cases
from tools.llm_eval.model import Road
from tools.llm_eval.stamp import sha256_of, stamp

EMBEDDED_CASES, CASES = 60, 1_000
EMBEDDED_HOSTILE, HOSTILE = 12, 60


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that can begin, its cases in words, and how well the hostile ones are aimed; empty without any."""

    plan: Plan
    cases: str
    aim: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many of which cases: `limit` clean ones (None: all there are), whether each is masked, hostile twins."""

    limit: int | None
    masked: bool
    hostile: int


def data_set(options: argparse.Namespace) -> DatasetInfo | None:
    """The data set, checked whole; None for the bundled one, which is made when it is needed.

    Raises `DatasetError` naming file, line and field.
    """
    return None if options.dataset == BUNDLED else check(Path(options.dataset))


def wanted(
    options: argparse.Namespace, pinned: Iterable[Pinned], *, info: DatasetInfo | None, embedded: bool
) -> Wanted:
    """What the options say, and where they are silent, what suits the model (the embedded one answers slowly) and the
    data set: one that brings twins along is given no others.
    """
    usual = None if info is not None else EMBEDDED_CASES if embedded else CASES
    brings_twins = info is not None and info.twins > 0
    hostile = 0 if brings_twins else EMBEDDED_HOSTILE if embedded else HOSTILE
    asks_policy = any(pin.prompt == POLICY for pin in pinned)
    return Wanted(
        limit=options.limit if options.limit is not None else usual,
        masked=options.masked if options.masked is not None else not embedded and not brings_twins,
        hostile=(options.injection if options.injection is not None else hostile) if asks_policy else 0,
    )


def prepare(
    options: argparse.Namespace, pinned: tuple[Pinned, ...], *, info: DatasetInfo | None, road: Road, folder: Folder
) -> Prepared:
    """Write the cases and the plan into an empty folder. Raises `DatasetError`, `FolderError`, `PlanError`."""
    want = wanted(options, pinned, info=info, embedded=road.server.embedded)
    clean = folder.path / ".clean.jsonl"
    try:
        count, digest = write_cases(clean, _clean(info, want, seed=options.seed))
        counted: Counter[str] = Counter()
        aimed: dict[str, list[bool]] = {}
        told = _counting(_with_twins(clean, want, seed=options.seed, road=road), counted, aimed, rules=road.rules)
        cases, cases_sha256 = write_cases(folder.cases, told)
    finally:
        clean.unlink(missing_ok=True)
    plan = Plan(
        name=options.name or default_name(pinned),
        made_at=datetime.now(UTC),
        seed=options.seed,
        repeat=options.repeat,
        versions=pinned,
        cases=cases,
        cases_sha256=cases_sha256,
        dataset=Dataset(BUNDLED, digest, count) if info is None else Dataset(str(info.path), info.sha256, info.cases),
        concurrency=options.concurrency,
        rate=options.rate,
        cache=options.cache == "on",
        thresholds=tuple(str(one) for one in options.fail_under or ()),
        rules_sha256=sha256_of(RULES_FILE),
        prices=prices(options),
        workers=options.workers,
        evaluation_id=uuid4(),
        stamp=stamp(pinned=pinned, rules_file=RULES_FILE, model=road.server.fingerprint),
    )
    folder.write_plan(plan)
    return Prepared(plan, in_words(counted, info), aim_in_words(aimed))


def in_words(counted: Mapping[str, int], info: DatasetInfo | None) -> str:
    """How many cases of which kind: `60 cases of the bundled bars, 12 hostile twins`."""
    clean = counted.get("", 0)
    where = "the bundled bars" if info is None else f"{info.path} ({info.cases})"
    twins = (f"{counted[kind]} {kind} twins" for kind in ("masked", "hostile") if counted.get(kind))
    return ", ".join((f"{clean} {'case' if clean == 1 else 'cases'} of {where}", *twins))


def aim_in_words(aimed: Mapping[str, list[bool]]) -> str:
    """How many twins of each attack that argues about rules meet a case denied for those alone."""
    told = ", ".join(f"{name} {sum(met)} of {len(met)}" for name, met in sorted(aimed.items()))
    return told and f"attacks that argue about a rule, on cases denied for that alone: {told}"


def default_name(pinned: Iterable[Pinned]) -> str:
    """A name that says what was asked: `rationale-1.0.0-policy-1.0.0`."""
    by_prompt: dict[str, list[str]] = {}
    for pin in pinned:
        by_prompt.setdefault(pin.prompt, []).append(pin.version)
    return "-".join(f"{prompt}-{'-'.join(versions)}" for prompt, versions in by_prompt.items())[:60].rstrip("-.")


def prices(options: argparse.Namespace) -> Prices | None:
    """The prices that were named; None where none was, and no cost is told."""
    named = (options.price_in, options.price_out, options.price_hour)
    if all(price is None for price in named):
        return None
    return Prices(*(price or 0.0 for price in named))


def _clean(info: DatasetInfo | None, want: Wanted, *, seed: int) -> Iterator[EvalCase]:
    if info is None:
        return bundled_cases(n=want.limit or CASES, seed=seed)
    return select(info, limit=want.limit, seed=seed)


def _counting(
    cases: Iterable[EvalCase], counted: Counter[str], aimed: dict[str, list[bool]], *, rules: Rules
) -> Iterator[EvalCase]:
    for case in cases:
        counted[case.twin] += 1
        if case.twin == "hostile" and (meets := meets_its_rule(case, rules)) is not None:
            aimed.setdefault(case.attack, []).append(meets)
        yield case


def _with_twins(clean: Path, want: Wanted, *, seed: int, road: Road) -> Iterator[EvalCase]:
    """The clean cases, their masked twins, the hostile ones. They may be many, so each kind reads them anew."""
    parts: list[Iterable[EvalCase]] = [CaseFile(clean)]
    if want.masked:
        parts.append(masked_twins(CaseFile(clean), seed=seed))
    if want.hostile:
        parts.append(injection_twins(CaseFile(clean), limit=want.hostile, seed=seed, rules=road.rules))
    return chain.from_iterable(parts)
