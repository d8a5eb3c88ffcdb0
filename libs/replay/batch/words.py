"""A batch replay's report as lines for a terminal: what decides first, each turn in a line of its own. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from libs.judgement.assess import POLICY
from libs.replay.batch.sums import FLIPS, Flip

SHOWN = 40
"""How many turns of one kind are printed."""
TITLES: Mapping[Flip, str] = {"deny_to_allow": "from deny to allow", "allow_to_deny": "from allow to deny"}


def lines(report: Mapping[str, Any], *, where: str) -> Iterator[str]:
    """The report. `where` says where the rest can be read."""
    flips: Mapping[str, int] = report["flips"]
    for way in FLIPS if report["prompt"]["key"] == POLICY else ():
        yield from _turns(way, flips[way], [one for one in report["flipped"] if one["flip"] == way], where=where)
    yield ""
    yield report["sentence"]
    yield ""
    yield from _table(report)


def _turns(way: Flip, count: int, named: Sequence[Mapping[str, Any]], *, where: str) -> Iterator[str]:
    yield f"{count} {'turns' if count == 1 else 'turn'} {TITLES[way]}{':' if count else '.'}"
    for one in named[:SHOWN]:
        yield f"  {one['words']}"
    if count > SHOWN:
        yield f"  … and {count - SHOWN} more: {where}"


def _table(report: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        ("", "before", "now"),
        ("valid", *(_rate(report["validity"][side]) for side in ("before", "after"))),
        ("agrees with the rules", *(_rate(report["agreement"][side]) for side in ("before", "after"))),
        ("latency p50, p95", *(_latency(report["latency_ms"][side]) for side in ("before", "after"))),
        ("tokens in, out", *(_tokens(report["tokens"][side]) for side in ("before", "after"))),
    ]
    if report["ungrounded"] is not None:
        rows.append(("numbers from nowhere", *(_rate(report["ungrounded"][side]) for side in ("before", "after"))))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, before, now in rows:
        yield f"{name:{widths[0]}}  {before:{widths[1]}}  {now:{widths[2]}}".rstrip()


def _rate(rate: Mapping[str, Any] | None) -> str:
    if rate is None:
        return "-"
    ends = f"{rate['low'] * 100:.1f} to {rate['high'] * 100:.1f}"
    return f"{rate['value'] * 100:.1f} % ({ends}), {rate['hits']} of {rate['of']}"


def _latency(spent: Mapping[str, Any] | None) -> str:
    return "-" if spent is None else f"{spent['p50']:.0f} ms, {spent['p95']:.0f} ms ({spent['n']})"


def _tokens(spent: Mapping[str, Any] | None) -> str:
    return "-" if spent is None else f"{spent['in']:.1f}, {spent['out']:.1f} each"
