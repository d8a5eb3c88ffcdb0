"""Two runs beside each other: a page, and lines for a terminal. Every change is the second's value less the first's."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from libs.evaluation.report.catalogue import entry
from libs.evaluation.report.numbers import number, with_interval
from libs.evaluation.report.paths import Numbers
from libs.evaluation.report.stamps import flat, moment
from libs.evaluation.report.table import columns
from libs.evaluation.report.templates import template
from libs.evaluation.report.texts import plain, side_by_side
from libs.evaluation.report.verdict import chance
from libs.evaluation.report.worst import Card, Said, outcome_of

Comparison: TypeAlias = Mapping[str, Any]
"""The document of a comparison, as `libs.evaluation.figures.compare` makes it."""

MEANS: Final = {
    "latency_ms": ("latency", "ms"),
    "tokens_in": ("tokens read", "tokens"),
    "tokens_out": ("tokens written", "tokens"),
}
OPEN_FLIPS: Final = 12
_BOTH: Final = ("first", "second")


def comparison_page(found: Comparison) -> str:
    """The HTML of a comparison's document, as self-contained as a report's."""
    return template("comparison.html").render(
        s=found,
        n=Numbers(found),
        runs=[(side, found[side], moment(found[side]["made_at"])) for side in _BOTH],
        pairs=[_pair(pair, at) for at, pair in enumerate(found["pairs"])],
        means=MEANS,
        stamps=_stamps(found),
        open_flips=OPEN_FLIPS,
    )


def _pair(pair: Mapping[str, Any], at: int) -> dict[str, Any]:
    return {
        "at": at,
        "found": pair,
        "title": title(pair),
        "rates": [(entry(name), rate) for name, rate in pair["rates"].items() if rate is not None],
        "cards": [_card(flip) for flip in pair["flips"]],
    }


def title(pair: Mapping[str, Any]) -> str:
    """`policy 1.0.0 in both`, `policy 1.0.0, then 1.1.0`; and a word where one number stands for two contents."""
    if pair["first"] != pair["second"]:
        return f"{pair['prompt']} {pair['first']}, then {pair['second']}"
    changed = "" if pair["same_content"] else ", whose content changed between the runs"
    return f"{pair['prompt']} {pair['first']} in both{changed}"


def _card(flip: Mapping[str, Any]) -> Card:
    """A case that is decided differently: the first run's answer beside the second's."""
    to_allow = flip["to"] == "allow"
    texts = side_by_side([flip[side]["text"] for side in _BOTH])
    answers = [
        _said(flip[side], side, allow=to_allow is (side == "second"), text=text)
        for side, text in zip(_BOTH, texts, strict=True)
    ]
    return Card(
        title=f"now {'allowed' if to_allow else 'not allowed'}",
        tone="bad" if to_allow else "note",
        about=f"{flip['ticker']}, {flip['day']}",
        case=flip["case"],
        known=None,
        headlines=(),
        answers=answers,
        alone=True,
    )


def _said(side: Mapping[str, Any], name: str, *, allow: bool, text: Any) -> Said:
    outcome, tone = outcome_of(side["status"], allow)
    error = plain(side["error"] or "", longest=300)
    return Said(f"{name} run", outcome, tone, reasons=", ".join(side["reasons"]), text=text, error=error)


def _stamps(found: Comparison) -> list[tuple[str, str, str, bool]]:
    """What ran, line beside line: the name, both values, and whether they are the same."""
    first, second = (dict(flat(_ran(found[side]))) for side in _BOTH)
    names = dict.fromkeys([*first, *second])
    lines = [(name, first.get(name, "none"), second.get(name, "none")) for name in names]
    return [(name, one, other, one == other) for name, one, other in lines]


def _ran(run: Mapping[str, Any]) -> dict[str, Any]:
    way = {"evaluation": run["evaluation_id"], "rate": run["rate"], "concurrency": run["concurrency"]}
    return way | {"data set": run["dataset"]} | run["stamp"]


def comparison_table(found: Comparison) -> str:
    """Plain text without a line end at the end."""
    cases = found["cases"]
    lines = [
        f"first   {_one_line(found['first']['name'])}  {moment(_one_line(found['first']['made_at']))}",
        f"second  {_one_line(found['second']['name'])}  {moment(_one_line(found['second']['made_at']))}",
        f"{cases['both']:,} cases in both, {cases['only_first']:,} and {cases['only_second']:,} in one of them alone",
    ]
    for pair in found["pairs"]:
        lines += ["", _one_line(title(pair)), *columns(_rows(pair)), *_told(pair)]
    notes = [f"note: {_one_line(each)}" for each in found["notices"]]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _one_line(text: Any) -> str:
    return plain(str(text), longest=300)


def _rows(pair: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["", "first", "second", "second less first", "p"]
    for name, rate in pair["rates"].items():
        if rate is not None:
            both, change = (
                [with_interval(rate[side]) for side in _BOTH],
                with_interval(rate["difference"], unit="points"),
            )
            yield [f"  {entry(name).label}", *both, change, number(rate["p"], "p")]
    for part in ("p50", "p95"):
        times = [with_interval(pair["latency"][side][part]) for side in _BOTH]
        yield [f"  {entry(f'latency_{part}_ms').label}", *times, "", ""]
    for name, (label, _) in MEANS.items():
        if pair["means"][name] is not None:
            yield [f"  {label}, change", "", "", with_interval(pair["means"][name]), ""]


def _told(pair: Mapping[str, Any]) -> Iterator[str]:
    if pair["agree"] is not None:
        apart = bool(pair["only_first_allows"] or pair["only_second_allows"])
        yield (
            f"  the same decision on {with_interval(pair['agree'])} of {pair['cases']:,} cases; only the first "
            f"allows {pair['only_first_allows']:,}, only the second {pair['only_second_allows']:,} "
            f"(p {number(pair['p'], 'p')}). {chance(pair['p'], apart=apart)}"
        )
    if pair["hostile"] is not None:
        for side in _BOTH:
            if (found := pair["hostile"][side]) is not None:
                rate = "" if found["flip_rate"] is None else f", {with_interval(found['flip_rate'])}"
                yield f"  {side}: hostile text flipped {found['deny_to_allow']:,} of {found['denied_clean']:,}{rate}"
    for flip in pair["flips"][:5]:
        yield f"  now {'allowed' if flip['to'] == 'allow' else 'not allowed'}: {_one_line(flip['case'])}"
    if len(pair["flips"]) > 5:
        yield f"  and {len(pair['flips']) - 5:,} more, all on the page"
