"""What a reader must know to read the figures rightly."""

from collections.abc import Sequence

from libs.evaluation.figures.columns import INVALID, Columns
from libs.evaluation.figures.pairs import LISTED, Attacked, policies
from libs.evaluation.figures.version import LEAST_FOR_P99, Figures, Part, beyond, cases_timed

MEMORY = (
    "Old prices are in the model's memory: it may know how a day ended. What its decisions made here, and how they fit "
    "what happened, is no evidence of skill."
)
ONCE = (
    "Each case was asked once, so the probability of an allow is 0 or 1: the Brier score is the share of wrong "
    "decisions, and the reliability curve has at most two points. --repeat asks more than once."
)


def notices(columns: Columns, figures: Sequence[Figures], *, missing: int, attacks: Sequence[Attacked]) -> list[str]:
    """Sentences, what weighs most first."""
    found = [*_gaps(columns, missing=missing)]
    if any(
        each[name] is not None for each in figures for name in ("return_allowed", "return_blocked", "brier_realised")
    ):
        found.append(MEMORY)
    if columns.plan.repeat == 1 and any(
        each["brier"] is not None or each["brier_realised"] is not None for each in figures
    ):
        found.append(ONCE)
    invalid = int((columns.status[columns.clean][:, policies(columns)] == INVALID).sum())
    if invalid:
        found.append(f"{_answers(invalid)} no valid decision; each counts as a deny, as it would at the gate.")
    found += _times(columns, figures)
    for each in attacks:
        if len(each.flips) > LISTED:
            version = columns.plan.versions[each.version].version
            found.append(f"Of {len(each.flips)} flips of policy {version}, the first {LISTED} are shown.")
    return found


def _gaps(columns: Columns, *, missing: int) -> list[str]:
    found: list[str] = []
    if missing:
        found.append(f"The run is not complete: {missing} of {columns.plan.items} items have not been asked.")
    silent = columns.rows - int(columns.answered.sum())
    if silent:
        where = "and nowhere else" if columns.plan.rate is None else "and in latency, as slower than every answer"
        found.append(f"{silent} of {columns.rows} items got no answer; they count in `answered` {where}.")
    return found


def _times(columns: Columns, figures: Sequence[Figures]) -> list[str]:
    found: list[str] = []
    cached = int((columns.cached & columns.answered).sum())
    if cached:
        found.append(f"{_answers(cached)} from the cache and left out of latency, tokens and cost.")
    if any(each["latency_p50_ms"] is not None for each in figures):
        found.append(
            "Latency is as a caller sees it who comes at a planned moment: waiting for a slot is in it."
            if columns.plan.rate is not None
            else "Latency is without waiting for a slot; --rate measures it under load."
        )
    parts = [Part(columns, version) for version in range(len(columns.plan.versions))]
    for pinned, part in zip(columns.plan.versions, parts, strict=True):
        if lost := beyond(part):
            silent, of = int((part.asked & ~part.answered).sum()), int(part.timed.sum())
            found.append(
                f"{pinned.prompt} {pinned.version}: {', '.join(lost)} lie beyond the time limits and have no figure, "
                f"since {silent:,} of {of:,} questions got no answer."
            )
    if any(0 < cases_timed(part) < LEAST_FOR_P99 for part in parts):
        found.append(f"The 99th percentile of latency takes at least {LEAST_FOR_P99:,} cases.")
    return found


def _answers(n: int) -> str:
    return "1 answer is" if n == 1 else f"{n} answers are"
