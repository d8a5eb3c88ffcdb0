"""The verdict as a JUnit file, for build servers: it fails exactly where the thresholds were missed."""

from collections.abc import Iterator, Mapping
from typing import Any, Final
from xml.etree import ElementTree as Xml

from libs.evaluation.report.numbers import number
from libs.evaluation.report.texts import plain
from libs.evaluation.report.verdict import UNASKED, Summary, is_missed, verdict

_LONGEST_NAME: Final = 200


def junit(summary: Summary) -> str:
    """The XML of a summary's document: a suite of its thresholds, and one of the flips that hostile texts brought.

    A flip fails where a threshold on flips of its version was missed; else it is told and does not fail.
    """
    root = Xml.Element("testsuites", name=_text(f"evaluation {summary['name']}"))
    suites = [
        _suite("thresholds", list(_thresholds(summary)), summary),
        _suite("flips", list(_flips(summary)), summary),
    ]
    for suite in suites:
        root.append(suite)
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    Xml.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{Xml.tostring(root, encoding="unicode")}\n'


def _suite(name: str, cases: list[Xml.Element], summary: Summary) -> Xml.Element:
    suite = Xml.Element("testsuite", name=f"evaluation.{name}")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(each.find("failure") is not None for each in cases)))
    suite.set("errors", "0")
    suite.set("skipped", "0")
    suite.set("timestamp", _text(str(summary["made_at"])[:19]))
    suite.set("time", f"{summary['run']['elapsed_s']:.3f}" if name == "thresholds" else "0")
    if name == "thresholds":
        suite.append(_properties(summary))
    suite.extend(cases)
    return suite


def _properties(summary: Summary) -> Xml.Element:
    run = summary["run"]
    found = {
        "evaluation_id": summary["evaluation_id"],
        "verdict": verdict(summary).sentence,
        "dataset": run["dataset"]["path"],
        "dataset_sha256": run["dataset"]["sha256"],
        "rows": run["rows"],
        "missing": run["missing"],
        **{f"{each['prompt']} {each['version']}": each["hash"] for each in summary["versions"]},
    }
    properties = Xml.Element("properties")
    for name, value in found.items():
        Xml.SubElement(properties, "property", name=_text(str(name)), value=_text(str(value)))
    return properties


def _thresholds(summary: Summary) -> Iterator[Xml.Element]:
    for each in summary["thresholds"]:
        of = " ".join(part for part in (each["prompt"], each["version"]) if part)
        most = "at most" if each["name"] == "flips" else "at least"
        case = _case(f"{each['name']} {most} {number(each['asked'], 'exact')}", of=of or "all")
        _say(case, each["sentence"], failed=not each["passed"], kind="ThresholdMissed")
        yield case
    if not summary["thresholds"]:
        case = _case("no threshold", of="all")
        _say(case, UNASKED, failed=False, kind="")
        yield case


def _flips(summary: Summary) -> Iterator[Xml.Element]:
    for hostile in summary["hostile"]:
        prompt, version = hostile["prompt"], hostile["version"]
        failed = is_missed(summary, prompt=prompt, version=version)
        for flip in hostile["flips"]:
            repeat = f", repeat {flip['repeat']}" if flip["repeat"] else ""
            case = _case(f"{flip['attack']} on {flip['case']}{repeat}", of=f"{prompt} {version}")
            _say(case, _told(flip), failed=failed, kind="Flip")
            yield case


def _told(flip: Mapping[str, Any]) -> str:
    acted = "the rules in code allow it too" if flip["acted"] else "the rules in code deny it"
    return (
        f"deny became allow in {flip['twin']}; {acted}\n"
        f"clean: {plain(flip['clean']['text'], lines=True)}\n"
        f"hostile: {plain(flip['hostile']['text'], lines=True)}"
    )


def _case(name: str, *, of: str) -> Xml.Element:
    return Xml.Element("testcase", name=_text(name), classname=_text(of), time="0")


def _say(case: Xml.Element, told: str, *, failed: bool, kind: str) -> None:
    said = plain(told, longest=8000, lines=True)
    if failed:
        Xml.SubElement(case, "failure", message=_text(told.split("\n", 1)[0], longest=1000), type=kind).text = said
    else:
        Xml.SubElement(case, "system-out").text = said


def _text(text: str, *, longest: int = _LONGEST_NAME) -> str:
    """A text that XML 1.0 can hold: without control characters and the like, in one line."""
    return plain(text, longest=longest)
