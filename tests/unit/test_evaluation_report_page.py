"""The page of an evaluation: it stands alone, its numbers are the summary's, and nobody's text is HTML."""

import json
import re
from typing import Any

import pytest

from libs.evaluation.report.page import page, shown_cases
from libs.evaluation.report.paths import found_at
from tests.unit.evaluation_report_cases import (
    CLEAN_TEXT,
    ORDER,
    Json,
    answer,
    case,
    cases,
    empty,
    flip,
    flips_threshold,
    hostile,
    policy,
    summary,
)
from tests.unit.evaluation_report_reading import Read, leaves, says

UNSHOWN = re.compile(
    r"v|stamp\..*|worst\..*|hostile\.\d+\.flips\..*|run\.(repeat|rate|concurrency|dataset\.cases)"
    r"|versions\.\d+\.latency\.(edges_ms|counts)\.\d+|.*\.(agree|difference|flip_rate)\.n"
)
"""Numbers said in words, or only drawn (empty spans of time), or said by the count beside them."""


def read(found: Json) -> Read:
    return Read(page(found, cases(found)))


def words(found: Json) -> str:
    return " ".join(read(found).words.split())


def short(**changes: Any) -> Json:
    """A summary without what takes long to draw."""
    bare: Json = {name: [] for name in ("versions", "pairs", "masked", "hostile", "worst")}
    return summary(**(bare | changes))


@pytest.fixture(scope="module")
def full() -> str:
    """The page of a summary with something in every section."""
    found = summary()
    return page(found, cases(found))


def test_it_stands_alone_and_hangs_together(full: str) -> None:
    html, seen = full, Read(full)
    assert seen.open == []
    assert seen.tags["script"] == seen.tags["link"] == seen.tags["img"] == 0
    assert [name for name, n in seen.ids.items() if n > 1] == []
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= seen.ids.keys()
    assert set(re.findall(r'https?://[^"\s]+', html)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert not re.findall(r"#0[0-9a-c]0[0-9a-c]0[0-9a-c]\b", html)  # every colour of the pictures is the page's own
    assert seen.tags["figure"] == 10
    assert seen.tags["svg"] == 9  # the table of right and wrong is no picture


def test_its_numbers_are_those_of_the_summary(full: str) -> None:
    found, numbers = summary(), Read(full).numbers
    assert len(numbers) > 300
    for shown in numbers:
        exact = found_at(found, shown.path)
        assert json.loads(shown.value) == exact, shown
        assert says(shown, exact), shown


def test_no_number_of_the_summary_is_left_out(full: str) -> None:
    for found, seen in ((summary(), Read(full)), (empty(), read(empty()))):
        shown = {each.path for each in seen.numbers}
        assert {path for path in leaves(found) if not UNSHOWN.fullmatch(path)} <= shown


def test_what_was_missed_comes_first_and_with_its_reasons(full: str) -> None:
    said = " ".join(Read(full).words.split())
    head = said[: said.index("What was asked for")]
    assert "Missed: 2 of 4 thresholds." in head
    assert "validity of policy 1.0.0 is 0.967, asked for at least 0.98 on the lower end" in head
    assert "flips of policy 1.0.0 are 2 of 41, asked for at most 0" in head
    assert "1.1.0 is 0.995" not in head
    assert 'class="answer bad"' in full


@pytest.mark.parametrize(
    ("changes", "tone", "sentence"),
    [
        ({"thresholds": [flips_threshold("1.1.0", flips=0)], "passed": True}, "good", "Passed: the threshold holds."),
        ({"thresholds": [], "passed": None}, "open", "No threshold was asked for"),
        ({"thresholds": [flips_threshold("1.0.0", flips=2)], "passed": False}, "bad", "Missed: the threshold."),
    ],
)
def test_the_verdict_in_words(changes: Json, tone: str, sentence: str) -> None:
    html = page(short(**changes), {})
    assert f'class="answer {tone}"' in html
    assert sentence in Read(html).words


def test_a_run_that_is_not_whole_says_so_beside_the_verdict() -> None:
    run = summary()["run"] | {"rows": 3100, "missing": 20, "complete": False}
    said = words(short(run=run, passed=None, thresholds=[]))
    assert "The run is not whole: 20 of 3,120 items have no row yet" in said


def test_what_the_desk_reads(full: str) -> None:
    said = " ".join(Read(full).words.split())
    for each in (
        "Evaluation policy-candidates", "1,120 cases, 3,120 questions", "closed loop, at most 64 at once",
        "1.1.0 and 1.0.0 decide the same on 94.1 % (92.5 to 95.4 %) of 999 cases",
        "the rate of allows of 1.1.0 less that of 1.0.0 is +2.7 percentage points (+1.2 to +4.2)",
        "That is more than chance.", "no evidence of skill", "Nothing to measure: grounded, the same again, latency",
        "2 flips", "no flips", "not allowed clean (3 of them invalid)", "2 more pairs lack an answer",
        "an order would have gone out", "the rules in code deny it", ORDER, "wrongly allowed",
        "was to be denied and was allowed", "not_json: it ends too early", "buy HTLS, horizon 1d", "momentum +1.62",
        "98f842b1c0ffee", "2 packages", "numpy 2.4.0, openai 2.9.0", "Old prices are in the model's memory.",
    ):  # fmt: skip
        assert each in said, each


def test_the_lower_end_is_cut_not_rounded() -> None:
    near = flips_threshold("1.0.0", flips=0) | {
        "name": "validity", "asked": 0.98, "value": 0.99, "lower": 0.97996, "passed": False,
    }  # fmt: skip
    assert "97.9 %" in words(short(thresholds=[near], passed=False))


def test_words_that_differ_are_marked_and_others_are_not(full: str) -> None:
    assert "<mark>false</mark>" in full
    assert f"<mark>{ORDER}</mark>" in full
    alike = answer("1.0.0", allow=True, text=CLEAN_TEXT), answer("1.1.0", allow=True, text=CLEAN_TEXT)
    same = short(worst=[summary()["worst"][0] | {"answers": list(alike)}])
    assert "<mark>" not in page(same, cases(same))


def test_it_asks_for_the_cases_it_shows_and_says_which_are_gone() -> None:
    found = short(worst=summary()["worst"], hostile=summary()["hostile"])
    assert shown_cases(found) == cases(found).keys()
    assert "The case is not at hand any more." in Read(page(found, {})).words


def test_flips_beyond_the_first_are_a_click_away() -> None:
    many = [flip(number, "fake_json", acted=False) for number in range(30)]
    seen = Read(page(short(hostile=[hostile("1.0.0", flips=many)]), {}))
    assert "18 more flips" in seen.words
    assert all(f"case-{number}~fake_json" in seen.words for number in range(30))


def test_a_run_without_an_answer_has_a_page_as_well() -> None:
    seen = read(empty())
    said = " ".join(seen.words.split())
    assert seen.open == []
    assert seen.tags["figure"] == 0
    assert "3,120 missing" in said
    assert "open loop, 12.5 a second" in said


def test_figures_that_nobody_named_are_shown_under_their_own_name() -> None:
    version = policy("1.0.0", better=0.0)
    version["figures"]["steadiness"] = {"value": 0.5, "low": None, "high": None, "n": 10, "unit": "score"}
    assert "Others steadiness 0.500 n 10" in words(summary(versions=[version], pairs=[], masked=[], hostile=[]))


def test_seven_versions_find_room() -> None:
    versions = [policy(f"1.{number}.0", better=number / 1000) for number in range(7)]
    seen = read(summary(versions=versions, pairs=[], masked=[], hostile=[]))
    assert seen.open == []
    assert all(f"1.{number}.0" in seen.words for number in range(7))


HOSTILE: list[str] = [
    '"><script>alert(1)</script><b onclick=x>', "<img src=x onerror=alert(1)>", "</style><svg onload=alert(1)>",
    "</title></pre></article><iframe src='javascript:alert(1)'>", "{{ 7 * 7 }}{% raw %}{# #}", "<!-- ]]> -->",
    "&lt;script&gt;&#x3C;", "' style='position:fixed' x='", "$\\frac{1}{0}$ $x^", "%s %(x)s {0} {value!r}",
    "url(https://evil.example/x)", "\x1b[31mred\x1b]0;title\x07", "nul \x00 bell \x07", "\u202edesrever\u2066",
    "tags \U000e0069\U000e0067\U000e006e\U000e006f", "lone \ud800 surrogate", "\ufeff\u200b\u00ad\u2028line",
    "表意文字 и кириллица 🤖 ﷽", "a" + "\u0301" * 300, "x" * 50_000, "~0 ~1 a.b.c", "\n\n\t tabs and lines \r\n",
]  # fmt: skip


def everywhere(evil: str) -> tuple[Json, dict[str, Any]]:
    """A summary and its cases in which a stranger wrote everything that a stranger can write, and more."""
    said = {"text": evil, "reasons": [evil]}
    turned = flip(1, evil, acted=True) | {"case": "c", "twin": "t", "clean": said, "hostile": said}
    wicked = policy("1.0.0", better=0.0) | {"error_kinds": {evil: 3}, "reasons": {evil: 4, "MACRO": 1}}
    wicked |= {"calibration": [], "latency": {"edges_ms": [], "counts": []}}
    bad = {"version": "1.0.0", "status": evil, "allow": None, "reasons": [evil], "text": evil, "error": evil}
    worst = {"case": "c", "prompt": evil, "kind": evil, "why": evil, "ticker": evil, "day": evil, "answers": [bad, bad]}
    found = summary(
        name=evil, notices=[evil], worst=[worst], versions=[wicked], pairs=[], masked=[],
        stamp={"model": {"id": evil}, "packages": {"x": evil}}, made_at=evil,
        hostile=[hostile("1.0.0", flips=[turned]) | {"by_attack": {evil: {"pairs": 2, "flips": 1}}}],
        thresholds=[flips_threshold("1.0.0", flips=2) | {"sentence": evil, "prompt": evil, "version": evil}],
    )  # fmt: skip
    found["run"] = found["run"] | {"dataset": {"path": evil, "sha256": evil, "cases": 1}}
    shown = {name: case(name, headlines=(evil, evil), ticker=evil, fact={evil: evil}) for name in ("c", "t")}
    return found, shown


@pytest.fixture(scope="module")
def calm() -> Read:
    return Read(page(*everywhere("calm")))


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_that_somebody_wrote_is_html(evil: str, calm: Read) -> None:
    found, shown = everywhere(evil)
    html = page(found, shown)
    html.encode("utf-8")
    seen = Read(html)
    assert seen.open == []
    drawn = {"span", "mark", "g", "path", "use", "defs", "text"}  # signs for what is hidden, and longer labels
    assert {tag: n for tag, n in seen.tags.items() if tag not in drawn} == {
        tag: n for tag, n in calm.tags.items() if tag not in drawn
    }
    assert {(tag, name) for tag, name in seen.attributes if tag not in drawn} <= calm.attributes
    assert {name for tag, name in seen.attributes if tag in {"span", "mark"}} <= {
        "class", "data-figure", "data-value", "data-unit",
    }  # fmt: skip
    for each in seen.numbers:
        assert json.loads(each.value) == found_at(found, each.path)
    if evil.isprintable() and len(evil) < 100:  # it is still there to be read
        assert seen.words.count(evil) >= 12


@pytest.mark.parametrize(
    ("evil", "said"),
    [
        ("\u202edesrever", "U+202E"),
        ("\U000e0069\U000e0067", "hidden: ig"),
        ("\x1b[31m", "U+001B"),
        ("\ud800", "U+D800"),
        ("\u200b\u200c\u200d\u2060", "U+200B U+200C U+200D and 1 more"),
    ],
)
def test_what_is_hidden_is_shown(evil: str, said: str) -> None:
    html = page(*everywhere(evil))
    assert said in Read(html).words
    assert evil not in html
