"""What is said of how long answers took: in the closed loop, at planned moments, and where none came."""

import pytest

from libs.evaluation.figures.summary import summarise
from tests.unit.evaluation_figure_rows import invalid, plan_of, row_of, silent
from tests.unit.test_evaluation_figures_version import figures_of, is_rate, version_of


def test_latency_of_the_closed_loop_is_without_the_wait_and_without_the_cache() -> None:
    plan = plan_of(cases=4)
    rows = [
        row_of(plan, 0, total_ms=110.0, queue_ms=10.0),
        row_of(plan, 1, total_ms=320.0, queue_ms=20.0),
        invalid(plan, 2, total_ms=205.0, queue_ms=5.0),
        row_of(plan, 3, total_ms=0.2, queue_ms=0.0, cached=True, first_token_ms=0.0, tokens_in=0, tokens_out=0),
    ]
    found = version_of(rows, plan)
    figures = found["figures"]
    assert (figures["latency_p50_ms"]["value"], figures["latency_p50_ms"]["n"]) == (200.0, 3)
    assert figures["latency_p95_ms"]["value"] == 300.0
    assert figures["latency_p99_ms"] is None
    assert (figures["first_token_p50_ms"]["value"], figures["first_token_p50_ms"]["n"]) == (30.0, 3)
    assert figures["tokens_in"]["value"] == 500
    is_rate(figures["cached_rate"], 1, 4)
    latency = found["latency"]
    assert sum(latency["counts"]) == 3
    assert len(latency["edges_ms"]) == len(latency["counts"]) + 1
    assert latency["edges_ms"] == sorted(latency["edges_ms"])
    assert latency["edges_ms"][0] <= 100 < 300 <= latency["edges_ms"][-1]


def test_latency_of_the_open_loop_counts_from_the_planned_moment() -> None:
    plan = plan_of(cases=2, rate=5.0)
    rows = [row_of(plan, 0, total_ms=110.0, queue_ms=10.0, late_ms=40.0), row_of(plan, 1, total_ms=100.0, late_ms=0.0)]
    figures = figures_of(rows, plan)
    assert (figures["latency_p50_ms"]["value"], figures["latency_p95_ms"]["value"]) == (100.0, 150.0)
    assert (figures["first_token_p50_ms"]["value"], figures["first_token_p95_ms"]["value"]) == (40.0, 80.0)


@pytest.mark.parametrize(("answers", "known"), [(999, False), (1_000, True)])
def test_the_99th_percentile_takes_a_thousand_answers(answers: int, known: bool) -> None:
    plan = plan_of(cases=1_000)
    rows = [row_of(plan, at, total_ms=float(at + 5), queue_ms=5.0) for at in range(answers)]
    found = figures_of(rows, plan)["latency_p99_ms"]
    assert (found is not None) == known
    if found is not None:
        assert (found["value"], found["low"], found["high"]) == (989.0, 982.0, 996.0)


def test_the_first_token_is_without_its_own_wait_alone() -> None:
    plan = plan_of(cases=20)
    plain = {"queue_ms": 50.0, "first_token_ms": 150.0}
    mended = {"first_error": "schema: x", "queue_ms": 450.0, "first_queue_ms": 50.0, "first_token_ms": 150.0}
    rows = [row_of(plan, at, **(plain if at % 2 else mended), total_ms=1_000.0) for at in range(20)]
    figures = figures_of(rows, plan)
    assert (figures["first_token_p50_ms"]["value"], figures["first_token_p95_ms"]["value"]) == (100.0, 100.0)
    assert (figures["latency_p50_ms"]["value"], figures["latency_p95_ms"]["value"]) == (550.0, 950.0)


def test_repeats_of_a_case_do_not_narrow_the_interval_of_a_quantile() -> None:
    once, often = plan_of(cases=100), plan_of(cases=100, repeat=10)
    figures = [
        figures_of([row_of(plan, at, 0, k, total_ms=105.0 + at) for at in range(100) for k in range(plan.repeat)], plan)
        for plan in (once, often)
    ]
    first, second = (each["latency_p50_ms"] for each in figures)
    assert (second["value"], second["low"], second["high"]) == (first["value"], first["low"], first["high"])
    assert (first["n"], second["n"]) == (100, 1_000)
    assert figures[1]["latency_p99_ms"] is None  # a thousand answers, but of a hundred cases


def test_at_planned_moments_what_got_no_answer_is_slower_than_all_that_did() -> None:
    plan = plan_of(cases=1_000, rate=5.0)
    rows = [
        silent(plan, at, total_ms=8_000.0) if at % 10 == 0 else row_of(plan, at, total_ms=1_000.0 + at)
        for at in range(1_000)
    ]
    found = summarise(rows, plan, missing=0, elapsed_s=1.0).document()
    figures = found["versions"][0]["figures"]
    assert figures["latency_p50_ms"]["value"] == 1_555.0  # the 500th of 1,000, not of the 900 that answered
    assert figures["latency_p50_ms"]["n"] == 1_000
    assert (figures["latency_p95_ms"], figures["latency_p99_ms"], figures["first_token_p95_ms"]) == (None, None, None)
    told = " ".join(found["notices"])
    assert "policy 1.0.0: latency_p95_ms, latency_p99_ms, first_token_p95_ms lie beyond the time limits" in told
    assert "since 100 of 1,000 questions got no answer" in told
    assert "takes at least" not in told


def test_an_end_beyond_the_limits_is_not_told() -> None:
    plan = plan_of(cases=100, rate=5.0)
    rows = [silent(plan, at) if at >= 96 else row_of(plan, at, total_ms=100.0 + at) for at in range(100)]
    found = figures_of(rows, plan)["latency_p95_ms"]
    assert (found["value"], found["high"]) == (194.0, None)
    assert found["low"] < 194.0


def test_in_the_closed_loop_what_got_no_answer_has_no_time() -> None:
    plan = plan_of(cases=10)
    rows = [silent(plan, at) if at >= 5 else row_of(plan, at) for at in range(10)]
    assert figures_of(rows, plan)["latency_p95_ms"]["n"] == 5
