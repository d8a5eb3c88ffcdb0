"""What a batch replay's report says, from its sums, and how a person reads it."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from libs.replay.batch.command import moment
from libs.replay.batch.report import LISTED, in_order, report, shortcoming
from libs.replay.batch.rows import BatchRefused
from libs.replay.batch.sums import FLIPS, Figures, Flip, Flipped, Kind, Made, Side, Spent
from libs.replay.batch.words import SHOWN, lines
from libs.statistics.intervals import Cluster, clustered_mean, wilson

NONE = Spent(0, None, None, None, None)
DAY = date(2013, 5, 3)
NOW = datetime(2026, 11, 22, 11, 30, tzinfo=UTC)


def kind(n: int, was: bool | None, now: bool | None, **changes: Any) -> Kind:
    """Decisions that the rules allow, with changes."""
    flip: Flip | None = None
    if bool(was) != bool(now):
        flip = "deny_to_allow" if now else "allow_to_deny"
    usual: dict[str, Any] = {
        "status_before": "invalid" if was is None else "ok",
        "status": "invalid" if now is None else "ok",
        "rules_before": True,
        "rules_now": True,
        "flip": flip,
        "acts": flip is not None,
        "same": was is now,
    }
    return Kind(n=n, was=was, now=now, **(usual | changes))


def turned(number: int = 0, *, flip: Flip = "deny_to_allow", **changes: Any) -> Flipped:
    """One decision that turned, with changes."""
    deny, allow = Side(False, ["EARNINGS"], True, "ok"), Side(True, [], True, "ok")
    opens = flip == "deny_to_allow"
    usual: dict[str, Any] = {
        "acts": True,
        "forecast_id": UUID(int=number),
        "ticker": f"T{number:03d}",
        "as_of": datetime(2013, 5, 3, 21, tzinfo=UTC),
        "side": "buy",
        "horizon": "1d",
        "made": 0.012,
        "before": deny if opens else allow,
        "after": allow if opens else deny,
    }
    return Flipped(flip=flip, **(usual | changes))


def made(flip: Flip, returns: list[float], *, waiting: int = 0, horizon: str = "1d") -> list[Made]:
    """A return a day, and some that wait on the first."""
    return [
        Made(flip, DAY + timedelta(days=number), horizon, 1 + (waiting if number == 0 else 0), 1, value)
        for number, value in enumerate(returns)
    ]


def of(kinds: list[Kind], *, key: str = "policy", **more: Any) -> dict[str, Any]:
    """The report on sums."""
    usual: dict[str, Any] = {"before": NONE, "after": NONE, "made": [], "flipped": []}
    return report(Figures(kinds=kinds, **(usual | more)), key=key, version="1.1.0")


KINDS = [kind(280, True, True), kind(10, False, False), kind(6, False, True), kind(3, True, False), kind(1, None, True)]


def test_turns_are_counted_both_ways_and_all_others_stay() -> None:
    found = of(KINDS)
    assert found["flips"] == {
        "deny_to_allow": 7,
        "deny_to_allow_acting": 7,
        "allow_to_deny": 3,
        "allow_to_deny_acting": 3,
        "unchanged": 290,
    }
    assert found["counts"] == {"total": 300, "answered": 300, "failed": 0, "same_answer": 290}


def test_an_invalid_answer_denies_and_a_missing_one_counts_nowhere() -> None:
    lost = kind(4, True, None, status="unavailable", flip=None, acts=False)
    found = of([kind(5, True, None), lost])
    assert found["flips"]["allow_to_deny"] == 5
    assert found["counts"] == {"total": 9, "answered": 5, "failed": 4, "same_answer": 0}
    assert found["validity"]["before"]["of"] == 5
    assert "4 could not be asked and count nowhere." in found["sentence"]


def test_turns_that_the_rules_deny_anyway_are_told_apart() -> None:
    found = of([kind(2, False, True), kind(3, False, True, acts=False, rules_now=False, rules_before=False)])
    assert (found["flips"]["deny_to_allow"], found["flips"]["deny_to_allow_acting"]) == (5, 2)
    assert "5 (3 of them denied by the rules anyway) turn from deny to allow" in found["sentence"]


def test_validity_and_agreement_have_wilsons_intervals() -> None:
    found = of([*KINDS, kind(20, True, True, rules_before=False, rules_now=False)])
    valid = wilson(319, 320)
    assert valid is not None
    assert found["validity"]["before"] == {
        "hits": 319,
        "of": 320,
        "value": pytest.approx(valid.value),
        "low": pytest.approx(valid.low),
        "high": pytest.approx(valid.high),
    }
    assert (found["validity"]["after"]["hits"], found["validity"]["after"]["high"]) == (320, 1.0)
    # Before: 280 + 3 allow as the rules do. The one that was invalid agreed with nobody.
    assert (found["agreement"]["before"]["hits"], found["agreement"]["before"]["of"]) == (283, 319)
    assert (found["agreement"]["after"]["hits"], found["agreement"]["after"]["of"]) == (287, 320)


def test_what_turns_made_is_clustered_by_market_day() -> None:
    days = [*made("deny_to_allow", [0.01, -0.03, 0.02], waiting=2), Made("deny_to_allow", DAY, "1d", 1, 1, 0.05)]
    found = of([kind(6, False, True)], made=days)["made"]["deny_to_allow"]
    expected = clustered_mean([Cluster(2, 0.06), Cluster(1, -0.03), Cluster(1, 0.02)])
    assert expected is not None
    assert (found["settled"], found["waiting"], found["market_days"]) == (4, 2, 3)
    assert found["total"] == pytest.approx(0.05)
    assert found["mean"]["value"] == pytest.approx(expected.value)
    assert (found["mean"]["low"], found["mean"]["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_the_sentence_says_what_a_desk_must_know() -> None:
    lost = made("deny_to_allow", [-0.0120, -0.0121, -0.0119, -0.0120])
    assert of(KINDS, made=lost)["sentence"] == (
        "Of 300 decisions through policy 1.1.0, 7 turn from deny to allow and 3 from allow to deny; 290 stay. "
        "Valid answers: 99.7 % before, 100.0 % now. "
        "The newly allowed made -1.20 % each by their horizon, before costs (95 % interval -1.21 to -1.19 %). "
        "The newly denied: none has an outcome yet."
    )
    once = of(KINDS, made=made("deny_to_allow", [0.05]))["sentence"]
    assert "The newly allowed: 1 with an outcome, all on one market day, which says too little." in once
    unclear = of(KINDS, made=made("deny_to_allow", [-0.05, 0.05]))["sentence"]
    assert "which cannot be told from nothing." in unclear


def test_horizons_that_overlap_are_told() -> None:
    sentence = of(KINDS, made=made("deny_to_allow", [0.01, 0.02], horizon="5d"))["sentence"]
    assert sentence.endswith("Horizons of 5d overlap, so these intervals are narrower than they should be.")


def test_a_period_without_decisions_says_so() -> None:
    found = of([])
    assert found["sentence"] == "No decision was written in the period: there is nothing to ask again."
    lost = of([kind(3, True, None, status="unavailable", flip=None, acts=False)])
    assert lost["sentence"] == "None of 3 decisions was answered by policy 1.1.0: there is nothing to compare."
    assert found["validity"] == {"before": None, "after": None}
    assert list(lines(found, where="there"))[:2] == ["0 turn from deny to allow.", "0 turn from allow to deny."]


@pytest.mark.parametrize(("failed", "enough"), [(0, True), (5, True), (6, False)])
def test_a_report_on_too_few_of_its_decisions_is_no_trial(failed: int, enough: bool) -> None:
    lost = kind(failed, True, None, status="refused", flip=None, acts=False)
    problem = shortcoming(of([kind(100 - failed, True, True), lost]), reason="refused: answered 400")
    if enough:
        assert problem is None
    else:
        assert problem == (
            "6 of 100 decisions got no answer, more than 5%: the others do not speak for the period. "
            "The usual reason: refused: answered 400"
        )


def test_a_report_on_nothing_is_no_trial_either() -> None:
    empty = of([])
    assert shortcoming(empty, reason=None) == empty["sentence"]


def test_a_turn_whose_forecast_was_dropped_is_named_all_the_same() -> None:
    gone = turned(side=None, horizon=None, made=None, feed=None)
    assert gone.words() == "T000 2013-05-03: deny (EARNINGS) -> allow; its forecast is not kept any more"
    kept = of([kind(2, False, True)], flipped=[turned(feed="replay:1"), gone])["flipped"]
    assert kept[0]["words"].startswith("T000 2013-05-03 buy 1d: ")
    assert (kept[1]["side"], kept[1]["horizon"], kept[1]["feed"]) == (None, None, None)


def test_each_turn_reads_as_a_line() -> None:
    assert turned().words() == "T000 2013-05-03 buy 1d: deny (EARNINGS) -> allow; made +1.20 %"
    idle = turned(acts=False, made=None)
    assert idle.words() == "T000 2013-05-03 buy 1d: deny (EARNINGS) -> allow; the rules deny it anyway; no outcome yet"
    invalid = turned(flip="allow_to_deny", after=Side(None, [], True, "invalid"), made=-0.01)
    assert invalid.words() == "T000 2013-05-03 buy 1d: allow -> deny (invalid); made -1.00 %"
    assert turned(side="none", made=None).words().endswith("-> allow; no entry")


def test_the_feed_is_named_where_market_days_came_by_more_than_one() -> None:
    twice = [turned(feed="replay:1"), turned(feed="replay:2")]
    said = [one["words"] for one in of([kind(2, False, True)], flipped=twice)["flipped"]]
    assert said[1] == "T000 2013-05-03 (replay:2) buy 1d: deny (EARNINGS) -> allow; made +1.20 %"
    once = of([kind(2, False, True)], flipped=[twice[0], twice[0]])["flipped"]
    assert "replay" not in once[0]["words"]


def test_the_first_lines_are_what_decides() -> None:
    flipped = [turned(number) for number in range(60)] + [turned(99, flip="allow_to_deny")]
    found = of([kind(60, False, True), kind(1, True, False)], flipped=flipped)
    shown = list(lines(found, where="GET /there"))
    assert shown[0] == "60 turn from deny to allow:"
    assert shown[1] == "  T000 2013-05-03 buy 1d: deny (EARNINGS) -> allow; made +1.20 %"
    assert shown[SHOWN + 1] == "  … and 20 more: GET /there"
    assert shown[SHOWN + 2] == "1 turns from allow to deny:"
    assert shown[SHOWN + 5] == found["sentence"]


def test_at_most_five_hundred_are_named_and_all_are_counted() -> None:
    found = of([kind(700, False, True)], flipped=[turned(number) for number in range(700)])
    assert (len(found["flipped"]), found["flips"]["deny_to_allow"]) == (LISTED, 700)


def test_costs_stand_side_by_side() -> None:
    before, after = Spent(2, 100.0, 190.0, 400.0, 20.0), Spent(3, 220.0, 380.0, 410.5, 31.5)
    found = of(KINDS, before=before, after=after)
    assert found["latency_ms"] == {
        "before": {"n": 2, "p50": 100.0, "p95": 190.0},
        "after": {"n": 3, "p50": 220.0, "p95": 380.0},
    }
    table = "\n".join(lines(found, where="there"))
    assert "100 ms, 190 ms (2)" in table
    assert "410.5, 31.5 each" in table
    assert of(KINDS)["latency_ms"] == {"before": None, "after": None}


def test_a_rationale_has_no_decisions() -> None:
    said = {"rules_before": None, "rules_now": None, "flip": None, "acts": False}
    kinds = [
        kind(
            6, None, None, status="ok", status_before="ok", same=True, invented_before=False, invented_now=False, **said
        ),
        kind(
            2, None, None, status="ok", status_before="ok", same=False, invented_before=True, invented_now=False, **said
        ),
    ]
    found = of(kinds, key="rationale")
    assert found["sentence"].startswith("Of 8 answers through rationale 1.1.0, 6 stay word for word.")
    assert found["ungrounded"]["before"]["hits"] == 2
    assert found["ungrounded"]["after"]["hits"] == 0
    shown = list(lines(found, where="there"))
    assert not any("deny" in line for line in shown)
    assert any(line.startswith("numbers from nowhere") for line in shown)


def test_it_is_json_and_comes_back_in_order() -> None:
    found = of(KINDS, flipped=[turned(), turned(1, flip="allow_to_deny")])
    shuffled = json.loads(json.dumps(found, sort_keys=True, allow_nan=False))
    ordered = in_order(shuffled)
    assert ordered == found
    assert list(ordered) == list(found)
    assert list(ordered["flipped"][0])[:2] == ["words", "flip"]
    assert list(FLIPS) == ["deny_to_allow", "allow_to_deny"]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("today", datetime(2026, 11, 22, tzinfo=UTC)),
        ("yesterday", datetime(2026, 11, 21, tzinfo=UTC)),
        ("90m", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        ("24h", datetime(2026, 11, 21, 11, 30, tzinfo=UTC)),
        ("7d", datetime(2026, 11, 15, 11, 30, tzinfo=UTC)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T09:30:00+02:00", datetime(2026, 1, 31, 7, 30, tzinfo=UTC)),
    ],
)
def test_a_moment_is_read_as_people_write_it(words: str, meant: datetime) -> None:
    assert moment(words, now=NOW) == meant


@pytest.mark.parametrize("words", ["", "tomorrow", "12", "2026-13-01", "999999d", "24 h"])
def test_what_is_no_moment_is_refused(words: str) -> None:
    with pytest.raises(BatchRefused, match="is no moment: give today, yesterday, 24h"):
        moment(words, now=NOW)
