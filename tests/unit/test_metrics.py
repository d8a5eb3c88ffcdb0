"""Our counters and histograms look to a scrape as prometheus_client's own do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from libs.metrics import Counters, Histograms

BOUNDS = (0.001, 0.25, 1, 5)


def lines(registry: CollectorRegistry) -> list[str]:
    """The page of a scrape, without the moments at which series were made."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1e6) | st.sampled_from(BOUNDS))))
def test_the_page_is_the_same(observed: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counters = Counters("requests", "Requests.", ["kind"], registry=ours)
    histograms = Histograms("seconds", "Time.", ["kind"], buckets=BOUNDS, registry=ours)
    counter = Counter("requests", "Requests.", ["kind"], registry=theirs)
    histogram = Histogram("seconds", "Time.", ["kind"], buckets=BOUNDS, registry=theirs)
    for kind, value in observed:
        counters.labels(kind).inc(value)
        histograms.labels(kind).observe(value)
        counter.labels(kind).inc(value)
        histogram.labels(kind).observe(value)
    assert lines(ours) == lines(theirs)


def test_a_series_is_kept_and_can_be_forgotten() -> None:
    registry = CollectorRegistry()
    counters = Counters("requests", "Requests.", ["kind", "status"], registry=registry)
    assert counters.labels("a", 200) is counters.labels("a", "200")
    counters.labels("a", 200).inc()
    assert registry.get_sample_value("requests_total", {"kind": "a", "status": "200"}) == 1
    counters.remove("a", 200)
    assert registry.get_sample_value("requests_total", {"kind": "a", "status": "200"}) is None


def test_the_number_of_labels_must_fit() -> None:
    counters = Counters("requests", "Requests.", ["kind"], registry=CollectorRegistry())
    with pytest.raises(ValueError, match="2 values for the labels kind"):
        counters.labels("a", "b")
