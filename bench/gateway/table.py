"""The figures in one table, and what each goal says of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from bench.gateway.candidates import DIRECT, OURS
from bench.gateway.cost import Costs, Meter
from bench.gateway.leaving import GOAL_MS, Freed
from bench.gateway.memory import Memory

ROUTER, LITELLM, NGINX = "vllm-router", "litellm", "nginx"
AIM = 1.0
PLAIN_MOST, STREAM_MOST, LITELLM_LEAST = 2.0, 1.5, 15.0
ADDED_P50_MS, ADDED_P99_MS = 1.5, 6.0
MEMORY_MB, GROWTH_MB = 180.0, 5.0
Verdict: TypeAlias = Literal["met", "aim missed", "MISSED", "not measured", ""]


@dataclass(slots=True)
class Results:
    """What a run measured; what it left out stays empty."""

    meter: Meter
    leaving: dict[str, list[Freed]] = field(default_factory=dict[str, list[Freed]])
    memory: Memory | None = None
    resident_mb: dict[str, float] = field(default_factory=dict[str, float])
    rows: tuple[int, int] | None = None
    """Rows in `llm_calls` after a clean stop, and requests that ours was sent."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure against its goal."""

    verdict: Verdict
    text: str


def middle(rounds: Sequence[float]) -> float | None:
    """The median of the rounds; None where there are none."""
    return statistics.median(rounds) if rounds else None


def ratios(costs: dict[str, Costs], other: str, *, stream: bool) -> list[float]:
    """Ours over another's CPU per request, round by round: what slows a round down slows both."""
    ours, theirs = (costs.get(name, Costs()) for name in (OURS, other))
    pairs = zip(ours.stream, theirs.stream, strict=False) if stream else zip(ours.plain, theirs.plain, strict=False)
    return [above / below for above, below in pairs]


def bounded(value: float | None, text: str, *, most: float) -> Goal:
    """Met or missed."""
    if value is None:
        return Goal("not measured", text.format("-"))
    return Goal("MISSED" if value > most else "met", text.format(f"{value:.2f}"))


def beside_router(costs: dict[str, Costs], *, stream: bool, most: float) -> Goal:
    """Met, its aim missed, or missed."""
    rounds = ratios(costs, ROUTER, stream=stream)
    what = "CPU per 64-chunk stream" if stream else "CPU per request"
    goal = bounded(middle(rounds), f"{what}: {{}} x vllm-router (aim {AIM:.1f}, at most {most:.1f})", most=most)
    if not rounds:
        return goal
    verdict: Verdict = "aim missed" if goal.verdict == "met" and statistics.median(rounds) > AIM else goal.verdict
    return Goal(verdict, f"{goal.text}; rounds {min(rounds):.2f} to {max(rounds):.2f}")


def cpu_goals(costs: dict[str, Costs], only: Sequence[str]) -> list[Goal]:
    """The ratios of CPU."""
    goals: list[Goal] = []
    for part, stream, most in (("cpu", False, PLAIN_MOST), ("stream", True, STREAM_MOST)):
        if part in only:
            goals.append(beside_router(costs, stream=stream, most=most))
    if "cpu" in only:
        times = [1 / one for one in ratios(costs, LITELLM, stream=False)]
        least = "not measured" if not times else "met" if statistics.median(times) >= LITELLM_LEAST else "MISSED"
        shown = f"{statistics.median(times):.1f}" if times else "-"
        goals.append(Goal(least, f"CPU per request: LiteLLM takes {shown} x ours (at least 15)"))
    for part, stream, what in (("cpu", False, "request"), ("stream", True, "64-chunk stream")):
        beside = middle(ratios(costs, NGINX, stream=stream))
        if part in only and beside is not None:
            goals.append(Goal("", f"CPU per {what}: {beside:.1f} x nginx (no goal)"))
    return goals


def goals_of(results: Results, only: Sequence[str]) -> list[Goal]:
    """Every goal whose part of the bench ran."""
    goals = cpu_goals(results.meter.costs, only)
    if "latency" in only:
        p50, p99 = results.meter.added() or (None, None)
        goals.append(bounded(p50, "added latency at 100 requests/s: p50 {} ms (at most 1.5)", most=ADDED_P50_MS))
        goals.append(bounded(p99, "added latency at 100 requests/s: p99 {} ms (at most 6)", most=ADDED_P99_MS))
    for freed in results.leaving.get(OURS, []):
        verdict: Verdict = "met" if freed.within == freed.tries else "MISSED"
        goals.append(Goal(verdict, f"slot freed within {GOAL_MS:.0f} ms after a client left, {freed.case}: {freed}"))
    if results.memory is not None:
        grown = f"growth from request {results.memory.first:,} to {results.memory.last:,}"
        goals.append(bounded(results.memory.at_last_mb, "memory: {} MB (at most 180)", most=MEMORY_MB))
        goals.append(bounded(results.memory.growth_mb, grown + ": {} MB (at most 5)", most=GROWTH_MB))
    if results.rows is not None:
        stored, sent = results.rows
        goals.append(Goal("met" if stored == sent else "MISSED", f"accounting: {stored:,} rows of {sent:,} requests"))
    return goals


def line(name: str, values: Sequence[float | None], form: str) -> str:
    """One row of the table."""
    return f"  {name:<34}" + "".join(f"{'-' if value is None else format(value, form):>13}" for value in values)


def table(results: Results, names: Sequence[str]) -> list[str]:
    """The figures of every candidate side by side: medians of the rounds."""
    costs = [results.meter.costs.get(name, Costs()) for name in names]
    added = [results.meter.added(name) for name in names]
    rows = [
        ("CPU per request, ms", [middle(one.plain) for one in costs], ".3f"),
        ("CPU per 64-chunk stream, ms", [middle(one.stream) for one in costs], ".2f"),
        ("requests per second, 64 in flight", [middle(one.plain_rate) for one in costs], ".0f"),
        ("added p50 at 100/s, ms", [None if one is None else one[0] for one in added], ".2f"),
        ("added p99 at 100/s, ms", [None if one is None else one[1] for one in added], ".2f"),
        ("memory after the rounds, MB", [results.resident_mb.get(name) for name in names], ".0f"),
    ]
    lines = ["  " + " " * 34 + "".join(f"{name:>13}" for name in names)]
    lines += [line(name, values, form) for name, values, form in rows if any(value is not None for value in values)]
    direct = results.meter.costs.get(DIRECT)
    if direct is not None and direct.p50:
        shown = f"p50 {min(direct.p50):.2f} ms, p99 {min(direct.p99):.2f} ms"
        lines.append(f"  the upstream itself at 100/s, in its quietest round: {shown}")
    for name, found in results.leaving.items():
        if name != OURS:
            lines.append(f"  slot freed, {name}: {'; '.join(f'{one.case} {one}' for one in found)}")
    return lines
