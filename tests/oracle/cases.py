"""What both sides are asked, and what our side answers. Everything is plain numbers, so that it goes through JSON."""

from math import log, sqrt
from typing import Any, TypeAlias

from scipy.special import betaincc

from libs.statistics.clustering import Clustered
from libs.statistics.sequential import (
    TUNED,
    always_valid_p,
    confidence_sequence,
    lower_bound,
    mixture_variance,
    rate_evidence,
)

Numbers: TypeAlias = list[float]

TWO_SAMPLES: list[dict[str, Any]] = [
    {"n": [n, m], "total": [0.4 * n, mean * m], "squares": [0.7 * n, (0.5 + mean * mean) * m], "alpha": a, "peak": peak}
    for n, m in ((10, 10), (40, 60), (500, 50), (20_000, 20_000))
    for mean in (0.41, 0.55, 1.9)
    for a in (0.05, 0.01, 0.2)
    for peak in (50.0, 5_000.0)
]
MARGINS: list[dict[str, Any]] = [
    {"clusters": clusters, "alpha": alpha, "peak": peak}
    for clusters in (1, 7, 20, 50, 333, 10_000)
    for alpha in (0.2, 0.05, 0.01, 0.001)
    for peak in (10.0, 50.0, 1_000.0)
]
RATES: list[dict[str, Any]] = [
    {"hits": hits, "n": n, "bound": bound}
    for hits, n in ((0, 1), (1, 1), (2, 2), (0, 40), (3, 40), (40, 40), (70, 1_000), (5, 3_000), (260, 5_000))
    for bound in (0.01, 0.05, 0.1, 0.5, 0.9)
    if max(rate_evidence(hits, n, bound=bound), rate_evidence(n - hits, n, bound=1 - bound)) < 1e290
]  # beyond, ours is cut
ASKED = {"two_samples": TWO_SAMPLES, "margins": MARGINS, "rates": RATES}


def two_sample(case: dict[str, Any]) -> Numbers:
    """Low, high and p of a difference of two independent samples, its members being the clusters."""
    means = [total / n for total, n in zip(case["total"], case["n"], strict=True)]
    spread = [
        (squares - total * total / n) / (n - 1)
        for squares, total, n in zip(case["squares"], case["total"], case["n"], strict=True)
    ]
    error = sqrt(spread[0] / case["n"][0] + spread[1] / case["n"][1])
    found = Clustered(means[1] - means[0], error, sum(case["n"]))
    peak = retuned(case["peak"], alpha=case["alpha"])
    estimate = confidence_sequence(found, level=1 - case["alpha"], peak=peak)
    return [estimate.low, estimate.high, always_valid_p(found, peak=peak)]


def margins(case: dict[str, Any]) -> Numbers:
    """How far the two-sided sequence reaches, and the one-sided, for clusters of unit variance."""
    found = Clustered(0.0, 1 / sqrt(case["clusters"]), case["clusters"])
    high = confidence_sequence(found, level=1 - case["alpha"], peak=case["peak"]).high
    return [high, -lower_bound(found, level=1 - case["alpha"], peak=case["peak"])]


def rate(case: dict[str, Any]) -> Numbers:
    """The logarithm of the evidence against exactly the bound: ours above it and, mirrored, ours below it.

    Jeffreys' prior cut in two at the bound, each part with its weight, is the whole prior.
    """
    hits, n, bound = case["hits"], case["n"], case["bound"]
    above = float(betaincc(0.5, 0.5, bound))
    both = above * rate_evidence(hits, n, bound=bound) + (1 - above) * rate_evidence(n - hits, n, bound=1 - bound)
    return [log(both)]


def retuned(peak: float, *, alpha: float) -> float:
    """gbstats tunes its mixture for the alpha asked for, we for one alpha: the peak that makes both mixtures equal."""
    return peak * mixture_variance(1.0, alpha=TUNED) / mixture_variance(1.0, alpha=alpha)


def ours() -> dict[str, list[Numbers]]:
    """Our answers to ASKED."""
    return {
        "two_samples": [two_sample(case) for case in TWO_SAMPLES],
        "margins": [margins(case) for case in MARGINS],
        "rates": [rate(case) for case in RATES],
    }


def mixtures() -> list[Numbers]:
    """rho squared of each of MARGINS, two-sided and one-sided: ville takes it as a given."""
    return [
        [mixture_variance(case["peak"]), mixture_variance(case["peak"], alpha=2 * case["alpha"])] for case in MARGINS
    ]
