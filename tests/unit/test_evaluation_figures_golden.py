"""Golden runs give their golden summaries, and these say what a plain count over the lines of the rows says."""

import json
import random
from collections import defaultdict
from importlib import import_module
from statistics import fmean
from typing import Any, cast

import pytest

from tests.unit.evaluation_figure_golden import FOLDER, RUNS, golden, summed_up

proportion: Any = import_module("statsmodels.stats.proportion")  # which says nothing of its types

Lines = list[dict[str, Any]]
ALWAYS = {True: 1, False: 0}


def close(found: Any, wanted: Any, where: str = "") -> None:
    """The same, but for the last digits of floating point."""
    if isinstance(wanted, dict):
        named = cast("dict[str, Any]", wanted)
        assert list(found) == list(named), where
        for name, value in named.items():
            close(found[name], value, f"{where}.{name}")
    elif isinstance(wanted, list):
        listed = cast("list[Any]", wanted)
        assert len(found) == len(listed), where
        for at, value in enumerate(listed):
            close(found[at], value, f"{where}[{at}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12), where
    else:
        assert found == wanted, where


@pytest.mark.parametrize("name", RUNS)
def test_a_golden_run_gives_its_summary(name: str) -> None:
    plan, rows, wanted = golden(name)
    close(summed_up(plan, rows).document(), wanted)


@pytest.mark.parametrize("name", RUNS)
def test_the_order_of_the_rows_does_not_matter(name: str) -> None:
    plan, rows, wanted = golden(name)
    random.Random(5).shuffle(rows)
    found = summed_up(plan, rows).document()
    # Which of two equally common kinds comes first is the rows' order; everything else is the same.
    for version in (*found["versions"], *wanted["versions"]):
        for counts in ("error_kinds", "reasons"):
            version[counts] = dict(sorted(version[counts].items()))
    close(found, wanted)


def lines_of(name: str) -> Lines:
    return [json.loads(line) for line in (FOLDER / name / "rows.jsonl").read_text().splitlines()]


def mine(lines: Lines, version: dict[str, Any], *, twin: str = "") -> Lines:
    return [
        line for line in lines
        if (line["prompt"], line["version"], line["twin"]) == (version["prompt"], version["version"], twin)
    ]  # fmt: skip


def counted(lines: Lines, prompt: str) -> dict[str, tuple[int, int]]:
    """Hits and answers of every rate, straight from the lines."""
    answered = [line for line in lines if line["status"] in {"ok", "invalid"}]
    fresh = [line for line in answered if not line["cached"]]
    found = {
        "answered": (len(answered), len(lines)),
        "validity": (sum(line["status"] == "ok" for line in answered), len(answered)),
        "first_validity": (sum(line["status"] == "ok" and not line["first_error"] for line in fresh), len(fresh)),
        "cached_rate": (sum(line["cached"] for line in answered), len(answered)),
    }
    if prompt == "rationale":
        valid = [line for line in answered if line["status"] == "ok"]
        return found | {"grounded": (sum(not line["ungrounded"] for line in valid), len(valid))}
    allows = [line["allow"] is True for line in answered]
    to_deny = [allow for line, allow in zip(answered, allows, strict=True) if line["target"] is False]
    to_allow = [allow for line, allow in zip(answered, allows, strict=True) if line["target"] is True]
    return found | {
        "allow_rate": (sum(allows), len(answered)),
        "deny_rate": (sum(line["allow"] is False for line in answered), len(answered)),
        "wrongly_allowed": (sum(to_deny), len(to_deny)),
        "wrongly_blocked": (len(to_allow) - sum(to_allow), len(to_allow)),
        "target_agreement": (len(to_deny) - sum(to_deny) + sum(to_allow), len(to_deny) + len(to_allow)),
        "rules_agreement": (
            sum(allow == line["rules_allow"] for line, allow in zip(answered, allows, strict=True)), len(answered)
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_rates_are_what_a_plain_count_says(name: str) -> None:
    _, _, summary = golden(name)
    lines = lines_of(name)
    for version in summary["versions"]:
        for figure, (hits, n) in counted(mine(lines, version), version["prompt"]).items():
            found = version["figures"][figure]
            assert (found["value"], found["n"]) == (pytest.approx(hits / n), n), figure
            low, high = proportion.proportion_confint(hits, n, method="wilson")
            if summary["run"]["repeat"] == 1:
                assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
            else:
                assert found["low"] <= low + 1e-9 <= high <= found["high"] + 1e-9, figure


@pytest.mark.parametrize("name", RUNS)
def test_means_are_what_a_plain_sum_says(name: str) -> None:
    _, _, summary = golden(name)
    for version in summary["versions"]:
        answered = [line for line in mine(lines_of(name), version) if line["status"] in {"ok", "invalid"}]
        figures = version["figures"]
        fresh = [line for line in answered if not line["cached"]]
        assert figures["tokens_in"]["value"] == pytest.approx(fmean(line["tokens_in"] for line in fresh))
        assert figures["latency_p50_ms"]["n"] == sum(version["latency"]["counts"]) == len(fresh)
        if version["prompt"] != "policy":
            continue
        settled = [line for line in answered if line["made"] is not None]
        allowed = [line["made"] for line in settled if line["allow"] is True]
        blocked = [line["made"] for line in settled if line["allow"] is not True]
        for figure, made in (("return_allowed", allowed), ("return_blocked", blocked)):
            assert figures[figure] is None if not made else figures[figure]["value"] == pytest.approx(fmean(made))
        cases: dict[str, Lines] = defaultdict(list)
        for line in answered:
            cases[line["case"]].append(line)
        for figure, truth in (("brier", "target"), ("brier_realised", "won")):
            scores = [
                (fmean(line["allow"] is True for line in each) - ALWAYS[each[0][truth]]) ** 2
                for each in cases.values()
                if each[0][truth] is not None
            ]
            assert figures[figure]["value"] == pytest.approx(fmean(scores)), figure
        bins = version["calibration"]
        assert sum(each["n"] for each in bins) == len(cases)
        assert sum(each["n"] * each["predicted"] for each in bins) == pytest.approx(
            sum(fmean(line["allow"] is True for line in each) for each in cases.values())
        )


@pytest.mark.parametrize("name", RUNS)
def test_hostile_twins_are_what_a_plain_count_says(name: str) -> None:
    _, _, summary = golden(name)
    lines = lines_of(name)
    assert summary["hostile"]
    for found in summary["hostile"]:
        clean = {(line["case"], line["repeat"]): line for line in mine(lines, found)}
        pairs = [
            (clean[line["twin_of"], line["repeat"]], line)
            for line in mine(lines, found, twin="hostile")
            if (line["twin_of"], line["repeat"]) in clean
        ]
        answered = [pair for pair in pairs if all(line["status"] in {"ok", "invalid"} for line in pair)]
        denied = [pair for pair in answered if pair[0]["allow"] is not True]
        turned = [pair for pair in denied if pair[1]["allow"] is True]
        assert (found["pairs"], found["denied_clean"], found["deny_to_allow"]) == (
            len(answered), len(denied), len(turned)
        )  # fmt: skip
        assert sorted((flip["twin"], flip["repeat"]) for flip in found["flips"]) == sorted(
            (twin["case"], twin["repeat"]) for _, twin in turned
        )
        for flip in found["flips"]:
            assert flip["clean"]["text"] == clean[flip["case"], flip["repeat"]]["text"]
        assert sum(counts["flips"] for counts in found["by_attack"].values()) == len(turned)


@pytest.mark.parametrize("name", ["recorded", "versions"])
def test_versions_differ_as_a_plain_count_says(name: str) -> None:
    _, _, summary = golden(name)
    lines = lines_of(name)
    [pair] = summary["pairs"]
    sides = [
        {line["case"]: line["allow"] is True for line in lines
         if (line["version"], line["prompt"], line["twin"]) == (version, "policy", "")
         and line["status"] in {"ok", "invalid"}}
        for version in (pair["first"], pair["second"])
    ]  # fmt: skip
    both = sides[0].keys() & sides[1].keys()
    assert pair["cases"] == len(both)
    assert pair["only_first_allows"] == sum(sides[0][case] and not sides[1][case] for case in both)
    assert pair["only_second_allows"] == sum(sides[1][case] and not sides[0][case] for case in both)


def test_the_golden_runs_hold_something_of_everything() -> None:
    versions, repeats = golden("versions")[2], golden("repeats")[2]
    assert {each["passed"] for each in versions["thresholds"]} == {True, False}
    assert versions["masked"]
    assert any(each["flips"] for each in versions["hostile"])
    assert any(each["error_kinds"].get("unavailable") for each in versions["versions"])
    assert repeats["run"]["complete"] is False
    assert repeats["versions"][0]["figures"]["repeat_agreement"]["value"] < 1
    for name, figure in versions["versions"][0]["figures"].items():
        other = repeats["versions"][0]["figures"][name] or versions["versions"][2]["figures"][name]
        assert figure is not None or other is not None or name == "latency_p99_ms", name
