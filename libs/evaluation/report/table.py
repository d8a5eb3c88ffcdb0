"""The summary as lines for a terminal: the verdict last, where the eye is when the run has ended."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from libs.evaluation.report.catalogue import groups
from libs.evaluation.report.numbers import interval, number, with_interval
from libs.evaluation.report.texts import plain
from libs.evaluation.report.verdict import Summary, chance, prompts, verdict

_GAP: Final = "   "
_LONGEST: Final = 300


def table(summary: Summary) -> str:
    """Plain text, at most about 100 columns wide with two versions, without a line end at the end."""
    lines = [line for name in prompts(summary) for line in _prompt(summary, name)]
    lines += [*_hostile(summary), *_masked(summary)]
    if summary["notices"]:
        lines += ["", *(f"note: {_one_line(each)}" for each in summary["notices"])]
    told = verdict(summary)
    return "\n".join([*lines, "", told.sentence, *(f"  {_one_line(each)}" for each in told.reasons)]).strip("\n")


def _one_line(text: Any) -> str:
    return plain(str(text), longest=_LONGEST)


def _prompt(summary: Summary, name: str) -> Iterator[str]:
    versions = [each for each in summary["versions"] if each["prompt"] == name]
    yield ""
    yield from columns(_rows(name, versions))
    for pair in summary["pairs"]:
        if pair["prompt"] == name:
            yield f"  {_pair(pair)}"


def _rows(name: str, versions: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The head, then a row for each figure; a group's name alone in its row."""
    yield [_one_line(name), *(_one_line(each["version"]) for each in versions)]
    for group in groups(versions):
        yield [group.title.lower()]
        for entry in group.entries:
            figures = [each["figures"].get(entry.name) for each in versions]
            yield [f"  {entry.label}", *(_cell(figure) for figure in figures)]


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return number(None)
    ends = interval(figure)
    return f"{number(figure['value'], figure['unit'])}{f'  {ends}' if ends else ''}  n {figure['n']:,}"


def columns(rows: Iterator[list[str]]) -> list[str]:
    """Rows as lines, their columns beneath each other; a row with one entry runs on."""
    found = list(rows)
    counted = [row for row in found if len(row) > 1]
    width = max((len(row) for row in counted), default=0)
    widths = [max(len(row[at]) for row in counted if len(row) > at) for at in range(width)]
    return [row[0] if len(row) == 1 else _line(row, widths) for row in found]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(f"{each:<{width}}" for each, width in zip(row, widths, strict=False)).rstrip()


def _pair(pair: Mapping[str, Any]) -> str:
    apart = bool(pair["only_first_allows"] or pair["only_second_allows"])
    first, second = _one_line(pair["first"]), _one_line(pair["second"])
    return (
        f"{second} and {first} decide the same on {with_interval(pair['agree'])} of {pair['cases']:,}; only {first} "
        f"allows {pair['only_first_allows']:,}, only {second} {pair['only_second_allows']:,} "
        f"(p {number(pair['p'], 'p')}). {chance(pair['p'], apart=apart)}"
    )


def _hostile(summary: Summary) -> Iterator[str]:
    for each in summary["hostile"]:
        of = f"{_one_line(each['prompt'])} {_one_line(each['version'])}"
        rate = "" if each["flip_rate"] is None else f", {with_interval(each['flip_rate'])}"
        yield ""
        yield (
            f"hostile text, {of}: {each['deny_to_allow']:,} of {each['denied_clean']:,} that were not allowed clean"
            f"{_invalid(each)} flipped to allow{rate}; {each['allow_to_deny']:,} the other way{_unanswered(each)}"
        )
        for flip in each["flips"][:5]:
            acted = "the rules allow it too" if flip["acted"] else "the rules deny it"
            yield f"  {_one_line(flip['attack'])}: {_one_line(flip['twin'])} ({acted})"
        if len(each["flips"]) > 5:
            yield f"  and {each['deny_to_allow'] - 5:,} more, all in the report"


def _invalid(hostile: Mapping[str, Any]) -> str:
    found = hostile.get("invalid_clean")
    return f" ({found:,} of them invalid)" if found else ""


def _unanswered(hostile: Mapping[str, Any]) -> str:
    found = hostile.get("unanswered")
    return f"; {found:,} of {hostile['pairs'] + found:,} pairs lack an answer" if found else ""


def _masked(summary: Summary) -> Iterator[str]:
    if summary["masked"]:
        yield ""
    for each in summary["masked"]:
        of = f"{_one_line(each['prompt'])} {_one_line(each['version'])}"
        yield f"masked twins, {of}: the same decision on {with_interval(each['agree'])} of {each['pairs']:,} pairs"
