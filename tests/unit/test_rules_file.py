"""`configs/rules.yaml`: every mistake stops the start and is named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.judgement.rules import Rules
from libs.judgement.thresholds import RulesError, check_rules
from tests.unit.judgement_cases import ROOT, json_values

GOOD = (ROOT / "configs" / "rules.yaml").read_text(encoding="utf-8")


def load(folder: Path, text: str) -> Rules:
    path = folder / "rules.yaml"
    path.write_text(text, encoding="utf-8")
    return Rules.load(path)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("  min_coverage_pct: 85", "  min_coverge_pct: 85", "thresholds.min_coverge_pct"),
        ("  earnings_days: 3", "", "thresholds.earnings_days"),
        ("earnings_days: 3", "earnings_days: three", "thresholds.earnings_days"),
        ("earnings_days: 3", "earnings_days: 3.5", "thresholds.earnings_days"),
        ("earnings_days: 3", "earnings_days: true", "thresholds.earnings_days"),
        ("earnings_days: 3", "earnings_days: -1", "thresholds.earnings_days"),
        ("max_factor_dispersion: 1.5", "max_factor_dispersion: .nan", "thresholds.max_factor_dispersion"),
        ("max_factor_dispersion: 1.5", "max_factor_dispersion: '1.5'", "thresholds.max_factor_dispersion"),
        ("min_coverage_pct: 85", "min_coverage_pct: 101", "thresholds.min_coverage_pct"),
        ("min_liquidity_usd: 5000000", "min_liquidity_usd:", "thresholds.min_liquidity_usd"),
        ("borrow: 5", "borow: 5", "max_age_days.borow"),
        ("[EARNINGS, BORROW, MACRO]", "[EARNINGS, BOROW]", "off.replay.1"),
        ("[EARNINGS, BORROW, MACRO]", "[NO_SIGNAL]", "off.replay: NO_SIGNAL cannot be switched off"),
        ("[EARNINGS, BORROW, MACRO]", "EARNINGS", "off.replay"),
        ("  replay: [", "  'replay:1': [", "off.replay:1"),
        ("max_age_days:", "max_ages_days:", "max_ages_days"),
        ("  borrow: 5", "  borrow: 5\n  borrow: 500", "'borrow' is given twice"),
        ("thresholds:", "thresholds: [", "line "),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in GOOD
    with pytest.raises(RulesError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert named in str(caught.value)
    assert "rules.yaml" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "7", "off: {}"])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RulesError, match=r"rules\.yaml"):
        load(tmp_path, text)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match="absent"):
        Rules.load(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(RulesError, match="binary"):
        Rules.load(tmp_path / "binary.yaml")


def test_without_off_every_feed_is_strict(tmp_path: Path) -> None:
    rules = load(tmp_path, GOOD[: GOOD.index("off:")])
    assert rules.switched_off("replay:1") == ()


@given(json_values)
def test_whatever_the_file_holds_the_error_is_ours(raw: object) -> None:
    with pytest.raises(RulesError):
        check_rules(raw, origin="test")


@given(st.dictionaries(st.text(max_size=5), st.lists(st.text(max_size=5), max_size=2), min_size=1, max_size=2))
def test_no_unknown_rule_is_ever_switched_off(off: dict[str, list[str]]) -> None:
    if not any(names for names in off.values()):
        return
    with pytest.raises(RulesError):
        check_rules({**GOOD_RAW, "off": off}, origin="test")


GOOD_RAW = {
    "thresholds": {
        "min_expected_return_pct": 0.05,
        "earnings_days": 3,
        "max_factor_dispersion": 1.5,
        "min_coverage_pct": 85,
        "min_liquidity_usd": 5_000_000,
    },
    "max_age_days": {"earnings_date": 120, "borrow": 5, "macro_regime": 7},
}
