"""An experiment and the history of a prompt, in rows and sentences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from libs.llm.commands.standing import arms_words, ground_words
from libs.llm.in_force import Activation
from services.analytics.console.layout.parts import shown

ARMS = (
    "arm", "weight", "units", "exposures", "answered", "invalid", "timed out", "unavailable", "not asked", "allowed",
    "settled",
)  # fmt: skip
METRICS = ("metric", "arm", "n", "mean", "95 % interval", "less the control", "95 % interval", "verdict")
GUARDRAILS = ("guardrail", "arm", "bound", "observed", "n", "evidence", "state", "in words")
HISTORY = ("when", "what was given", "by", "why", "made on")

_COUNTS = ("units", "exposures", "answered", "invalid", "timed_out", "unavailable", "skipped", "allowed", "settled")
PERCENT = {"rate", "return"}
_UNITS = {"milliseconds": " ms"}


def arm_rows(report: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """Every arm and how far its exposures came."""
    for arm in report["arms"]:
        name = f"{arm['arm']} (control)" if arm["arm"] == report["control"] else arm["arm"]
        weight = "?" if arm["weight"] is None else f"{arm['weight']:g}"
        yield name, weight, *(arm[count] for count in _COUNTS)


def ratio_lines(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The sample-ratio check in sentences, each with its tone."""
    ratios = report["sample_ratio"]
    for name, when in (("assigned", "As assigned"), ("settled", "With an answer and an outcome")):
        found = ratios[name]
        if found is None:
            yield "muted", f"{when}: nothing to check yet."
            continue
        p = found["p_value"]
        if found["alarm"]:
            alarm = f"the arms hold other shares than they were given, and chance is no explanation (p = {p:.2g})"
            yield "bad", f"{when}: {alarm}. No figure below can be trusted."
        else:
            yield "good", f"{when}: the arms hold the shares they were given (p = {p:.2g})."


def metric_rows(report: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """Every metric by arm, candidates beside the control."""
    for metric in report["metrics"]:
        beside = {one["candidate"]: one for one in metric["differences"]}
        for place, arm in enumerate(metric["arms"]):
            unit, one = metric["unit"], beside.get(arm["arm"])
            name = f"{metric['name']}: {metric['meaning']}" if place == 0 else ""
            own = (arm["arm"], arm["n"], number(arm["mean"], unit), interval(arm, unit))
            if one is None:
                yield name, *own, "", "", "control" if arm["arm"] == report["control"] else ""
            else:
                less = number(one["value"], unit, signed=True)
                yield name, *own, less, interval(one, unit, signed=True), one["verdict"]


def guardrail_rows(report: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """Every guardrail with the evidence against its arm."""
    for one in report["guardrails"]:
        observed = "" if one["observed"] is None else f"{one['observed']:.4g}"
        state = "BREACHED" if one["breached"] else "holds" if one["n"] else "not judged yet"
        evidence = f"{one['evidence']:.3g} of 100"
        yield one["name"], one["arm"], f"{one['bound']:.4g}", observed, one["n"], evidence, state, one["sentence"]


def ended_words(report: Mapping[str, Any], changes: Sequence[Activation]) -> str:
    """When an experiment ended, and by whom; `changes` are newest first."""
    ending = [one for one in changes if one.problem is None and _after(report, one)]
    if not ending:
        return "No experiment runs now. Below is the last one: the file or the environment ended it."
    last = ending[-1]
    return f"No experiment runs now. Below is the last one, ended at {shown(last.at)} by {last.who}: {last.why}"


def _after(report: Mapping[str, Any], change: Activation) -> bool:
    """Whether a change came after the one that began the experiment, or after its first unit."""
    kind, _, number = report["phase"].rpartition("-")
    if kind == "activation":
        return change.id > int(number)
    return report["since"] is not None and change.at > datetime.fromisoformat(report["since"])


def verdict_words(report: Mapping[str, Any]) -> str:
    """What each candidate comes to."""
    return "; ".join(f"{candidate}: {verdict}" for candidate, verdict in report["verdicts"].items())


def history_rows(rows: Iterable[Activation]) -> Iterator[tuple[object, ...]]:
    """What was promoted, ramped and rolled back."""
    for row in rows:
        if row.problem is not None:
            yield row.at, "not followed", row.who, f"{row.why} ({row.problem})", ""
        else:
            given = arms_words(row.arms) if row.arms else f"{row.version} alone"
            yield row.at, given, row.who, row.why, ground_words(row.ground)


def number(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A figure in its unit, a signed one being a difference; empty where there is none."""
    if value is None:
        return ""
    return f"{_digits(value, unit, signed=signed)}{_unit(unit, signed=signed)}"


def interval(ends: Mapping[str, Any], unit: str, *, signed: bool = False) -> str:
    """An interval in its unit; empty where there is none."""
    if ends["low"] is None or ends["high"] is None:
        return ""
    # A share lies between nothing and all, wherever its interval ends.
    share = unit == "rate" and not signed
    low, high = (
        _digits(min(max(ends[end], 0), 1) if share else ends[end], unit, signed=signed) for end in ("low", "high")
    )
    return f"{low} to {high}{_unit(unit, signed=signed)}"


def _digits(value: float, unit: str, *, signed: bool) -> str:
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.2f}" if unit in PERCENT else f"{value:{sign}.4g}"


def _unit(unit: str, *, signed: bool) -> str:
    if unit in PERCENT:
        return " points" if signed else " %"
    return _UNITS.get(unit, "")


def marked(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Lines of a difference, each with its tone."""
    tones = {"+": "good", "-": "bad", "@": "muted"}
    for line in lines:
        yield tones.get(line[:1], "plain"), line
