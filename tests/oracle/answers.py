"""The other side: run by the oracles' own Python, which has nothing of the project. JSON in, JSON out."""

import json
import sys
from importlib import import_module
from typing import Any

gbstats: Any = import_module("gbstats.frequentist.tests")
statistics: Any = import_module("gbstats.models.statistics")
ville: Any = import_module("ville")


def two_sample(case: dict[str, Any]) -> list[float]:
    """Low, high and p by GrowthBook's sequential test."""
    arms = [
        statistics.SampleMeanStatistic(n=n, sum=total, sum_squares=squares)
        for n, total, squares in zip(case["n"], case["total"], case["squares"], strict=True)
    ]
    config = gbstats.SequentialConfig(
        difference_type="absolute", alpha=case["alpha"], sequential_tuning_parameter=case["peak"]
    )
    test = gbstats.SequentialTwoSidedTTest(*arms, config)
    return [*map(float, test.confidence_interval), float(test.p_value)]


def margins(case: dict[str, Any], mixture: list[float]) -> list[float]:
    """ville's boundaries for the same mixtures: the two-sided in closed form, the one-sided solved numerically."""
    t, alpha = case["clusters"], case["alpha"]
    return [
        float(ville.normal_mixture(t, alpha, 1 / mixture[0])) / t,
        float(ville.normal_mixture(t, alpha, 1 / mixture[1], one_sided=True)) / t,
    ]


def rate(case: dict[str, Any]) -> list[float]:
    """ville's evidence against exactly the bound, the whole of Jeffreys' prior as the mixture."""
    test = ville.BernoulliTest(case["bound"], prior=(0.5, 0.5))
    return [float(test.fit([1.0] * case["hits"] + [0.0] * (case["n"] - case["hits"])).log_e_values_[-1])]


def main() -> None:
    """Answer what stands on stdin."""
    asked = json.load(sys.stdin)
    answers = {
        "two_samples": [two_sample(case) for case in asked["two_samples"]],
        "margins": [margins(*pair) for pair in zip(asked["margins"], asked["mixtures"], strict=True)],
        "rates": [rate(case) for case in asked["rates"]],
    }
    json.dump(answers, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
