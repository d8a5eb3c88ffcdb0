"""The page of an experiment: it stands alone, says what the report says, and takes nobody's text for HTML."""

import re
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from libs.exposures.course import Look
from libs.exposures.figures import (
    ArmFigure,
    ArmReport,
    Difference,
    ExperimentReport,
    MetricReport,
    SampleRatios,
    Verdict,
)
from libs.exposures.guardrails import evaluate
from libs.exposures.metrics import ALL
from libs.exposures.page import Story, page
from libs.exposures.sums import ArmSums
from libs.llm.experiments import Experiment
from libs.llm.in_force import Activation, Ground
from libs.statistics.intervals import Estimate
from libs.statistics.sample_ratio import sample_ratio
from tests.unit.test_exposures_guardrails import judged

NOW = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
EVIL = '"><script>alert(1)</script><b onclick=x>'
NAMES = ("1.1.0", "1.2.0")


def course(days: int) -> tuple[Look, ...]:
    return tuple(
        Look(
            date(2026, 1, 5) + timedelta(days=day),
            0.02 + 0.1 / (day + 1),
            None if day < 3 else Estimate(0.02, 0.02 - 0.5 / day, 0.02 + 0.5 / day),
        )
        for day in range(days)
    )


def metric_report(name: str, verdict: Verdict = "better", *, known: bool = True) -> MetricReport:
    estimate = Estimate(0.0212, 0.0101, 0.0323) if known else None
    arms = tuple(ArmFigure(arm, 100, 0.931 if known else None, estimate) for arm in ("1.0.0", *NAMES))
    differences = tuple(
        Difference(candidate, 0.0212 if known else None, estimate, 40, p=0.001, p_adjusted=0.0042, verdict=verdict)
        for candidate in NAMES
    )
    return MetricReport(ALL[name], ALL[name].worth, arms, differences)


def report(**changes: Any) -> ExperimentReport:
    weights = {"1.0.0": 60.0, "1.1.0": 20.0, "1.2.0": 20.0}
    counts = {"1.0.0": 611, "1.1.0": 190, "1.2.0": 199}
    values: dict[str, Any] = {
        "key": "policy",
        "state": "running",
        "phase": "activation-17",
        "unit": "ticker_day",
        "since": NOW - timedelta(days=40),
        "judged_at": NOW,
        "control": "1.0.0",
        "arms": tuple(ArmReport(arm, weights[arm], ArmSums(arm, exposures=n, units=n)) for arm, n in counts.items()),
        "sample_ratio": SampleRatios(sample_ratio(counts, weights), None),
        "metrics": (metric_report("validity"), metric_report("return_allowed", "not enough data", known=False)),
        "verdicts": {"1.1.0": "better", "1.2.0": "no difference worth having"},
        "sentence": "1.1.0 is better than 1.0.0.",
    }
    return ExperimentReport(**values | changes)


def story(made: ExperimentReport, *, why: str = "to try it", courses: Any = None) -> Story:
    experiment = Experiment((("1.0.0", 60.0), ("1.1.0", 20.0), ("1.2.0", 20.0)), phase="p", control="1.0.0")
    counts = {"1.0.0": judged("1.0.0", 60), "1.1.0": judged("1.1.0", 40, invalid=30)}
    ground = Ground("1.0.0", None, None)
    arms = (("1.0.0", 90.0), ("1.1.0", 10.0))
    history = [
        Activation(18, "policy", "1.0.0", (), "guardrail", why, ground, NOW),
        Activation(17, "policy", "1.0.0", arms, "ann", why, ground, NOW - timedelta(days=1)),
    ]
    drawn = {name: {"validity": course(30), "return_allowed": ()} for name in NAMES} if courses is None else courses
    return Story(made, evaluate(experiment, counts), history, drawn, NOW)


class Read(HTMLParser):
    """What a browser would make of it: tags that close, ids, and what is referred to."""

    VOID = frozenset({"meta", "br", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.words = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)
        self.ids.update(value for name, value in attrs if name == "id" and value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_stands_alone_and_hangs_together() -> None:
    html = page(story(report()))
    read = Read(html)
    assert read.open == []
    assert read.tags["script"] == read.tags["link"] == read.tags["img"] == 0
    assert [name for name, n in read.ids.items() if n > 1] == []
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    assert referred
    assert referred <= read.ids.keys()
    assert set(re.findall(r'https?://[^"\s]+', html)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert not re.findall(r"#0[1-5]0[1-5]0[1-5]", html)  # every colour of the pictures is the page's own
    assert read.tags["figure"] == read.tags["svg"] == 2


def test_it_says_what_the_report_says() -> None:
    words = " ".join(Read(page(story(report()))).words.split())
    for said in (
        "1.1.0 is better than 1.0.0.",
        "activation-17, running",
        "61.1 % of 60 % meant",
        "1.1.0 against 1.0.0 better",
        "1.2.0 against 1.0.0 no difference worth having",
        "93.1 %",
        "+2.12",
        "+1.01 to +3.23",
        "0.004",
        "invalid rate 1.1.0",
        "30 of 40 answers were invalid",
        "broken over a million",
        "1.0.0@90, 1.1.0@10",
        "2026-03-04 05:06 UTC",
        "2026-01-05 to 2026-02-03",
        "nothing to compare",
    ):
        assert said in words, said


def test_nothing_that_somebody_wrote_is_html() -> None:
    arms = (*report().arms[:-1], ArmReport(EVIL, 20.0, ArmSums(EVIL)))
    made = report(key=EVIL, phase=EVIL, sentence=EVIL, arms=arms)
    calm, evil = Read(page(story(report()))), Read(page(story(made, why=EVIL)))
    assert evil.tags == calm.tags
    assert evil.attributes == calm.attributes
    assert evil.words.count(EVIL) >= 5


@pytest.mark.parametrize("unit", ["ticker", "ticker_day", "forecast"])
def test_before_anything_came_there_is_a_page_as_well(unit: str) -> None:
    arms = (ArmReport("1.0.0", None, ArmSums("1.0.0")),)
    nothing = report(
        unit=unit, arms=arms, metrics=(), verdicts={}, since=None, judged_at=None, sentence="Nothing yet.",
        sample_ratio=SampleRatios(None, None), state="ended",
    )  # fmt: skip
    read = Read(page(Story(nothing, [], [], {}, NOW)))
    words = " ".join(read.words.split())
    assert read.open == []
    assert read.tags["figure"] == 0
    for said in ("Nothing yet.", "None is on.", "Nothing: the file and the environment rule.", "none yet"):
        assert said in words


def test_a_sample_ratio_that_is_off_is_seen_at_once() -> None:
    off = sample_ratio({"1.0.0": 500, "1.1.0": 700}, {"1.0.0": 1.0, "1.1.0": 1.0})
    html = page(story(report(sample_ratio=SampleRatios(off, None))))
    assert 'class="answer bad"' in html
    assert '<span class="tag bad">off</span>' in html
    assert 'class="answer good"' in page(story(report()))
