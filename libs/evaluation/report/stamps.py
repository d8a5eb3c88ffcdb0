"""What ran, said in lines: the facts at the head of a page and the stamp at its end."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

from libs.evaluation.report.verdict import Summary, prompts

Line: TypeAlias = tuple[str, str]


def facts(summary: Summary) -> list[Line]:
    """What a reader asks first: which versions, on which cases, in which way, when."""
    run, dataset = summary["run"], summary["run"]["dataset"]
    versions = [
        f"{prompt} {' and '.join(each['version'] for each in summary['versions'] if each['prompt'] == prompt)}"
        for prompt in prompts(summary)
    ]
    rate, places = run["rate"], run["concurrency"]
    way = f"open loop, {rate:g} a second" if rate is not None else "closed loop"
    beside = "" if places is None else f", at most {places} at once"
    return [
        ("Evaluated", ", ".join(versions)),
        ("Data set", str(dataset["path"])),
        ("Way", f"{way}{beside}"),
        ("Made", moment(summary["made_at"])),
    ]


def moment(text: str) -> str:
    """`2026-03-04 05:06 UTC` of an ISO moment in UTC; any other text as it is."""
    head, tail = text[:16], text[19:]
    utc = tail == "" or tail.endswith(("+00:00", "Z"))
    return f"{head.replace('T', ' ')} UTC" if len(text) >= 19 and text[10] == "T" and utc else text


def stamp_lines(summary: Summary) -> list[Line]:
    """What the stamp holds but for packages, flat, with the run's identity and the hashes of what was asked."""
    dataset: Mapping[str, Any] = summary["run"]["dataset"]
    own = [("evaluation", str(summary["evaluation_id"])), ("data set sha256", str(dataset["sha256"]))]
    hashes = [(f"{each['prompt']} {each['version']} sha256", str(each["hash"])) for each in summary["versions"]]
    rest = {name: value for name, value in summary["stamp"].items() if name not in _APART}
    return [*own, *hashes, *(flat(rest) if rest else ())]


_APART: Final = ("packages", "prompts")
"""What is shown elsewhere: packages folded, the prompts' hashes with the versions."""


def packages(summary: Summary) -> list[str]:
    """Every package with its version."""
    found: Mapping[str, Any] = summary["stamp"].get("packages") or {}
    return [f"{name} {version}" for name, version in found.items()]


def flat(value: Any, name: str = "") -> Iterator[Line]:
    """A document in lines: its names one after the other, and what stands there."""
    if isinstance(value, dict) and value:
        for key, entry in cast("dict[str, Any]", value).items():
            yield from flat(entry, f"{name} {key}".strip().replace("_", " "))
    elif isinstance(value, list) and value:
        yield name, ", ".join(_said(entry) for entry in cast("list[Any]", value))
    else:
        yield name, _said(value)


def _said(value: Any) -> str:
    if value is None or value in ({}, []):
        return "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
