"""How much it takes until a difference is seen, when one looks after every batch and stops when it shows.

Three tables, all simulated with the statistics that experiments are judged by: clusters (market days, as a rule) until
a difference is called; market days until a candidate's deny rate is; answers until a guardrail takes a candidate back.
Nothing is timed.
"""

from collections.abc import Callable, Iterable, Sequence
from math import ceil

import numpy as np
import numpy.typing as npt

from libs.statistics.clustering import Clustered, clustered_pair_difference
from libs.statistics.intervals import normal_quantile
from libs.statistics.sequential import LEAST_CLUSTERS, confidence_sequence, rate_evidence
from tests.statistics.worlds import World, runs

RUNS = 1_000
LEVEL = 0.95
POWER = 0.8
ALPHA = 0.01
MOST_CLUSTERS = 4_000
MOST_ANSWERS = 4_000
DAY_RUNS, MOST_DAYS = 100, 250
EFFECTS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
SHIFTS = (0.05, 0.10, 0.20, 0.40)
TRUE_RATES = (2.0, 3.0, 5.0, 10.0)
BOUNDS = (0.05, 0.10)


def main() -> None:
    """Print the tables."""
    chance = np.random.default_rng(1)
    print(f"Clusters until a difference is called ({LEVEL:.0%} confidence sequence, a look after each, {RUNS} runs)")
    print("effect is the difference in standard deviations of one cluster's difference; - is more than there were\n")
    table(("effect", "half of runs", f"{POWER:.0%} of runs", "one fixed look"), clusters_needed(chance))
    print(f"\nMarket days until a deny rate of 50 % is called different ({DAY_RUNS} runs of {MOST_DAYS} days)")
    print("3 forecasts a ticker and day, arms by ticker and day, strong effects of days and tickers\n")
    table(("tickers", "candidate", "true difference", "half of runs", f"{POWER:.0%} of runs"), days_needed())
    print(f"\nAnswers of the candidate until its rate is refuted (evidence {1 / ALPHA:.0f}, a look after each)\n")
    table(("bound", "true rate", "half of runs", "95% of runs"), answers_needed(chance))


def clusters_needed(chance: np.random.Generator) -> Iterable[Sequence[str]]:
    """Effect, clusters for half and for most runs, and what a test at one fixed size needs for the same power."""
    count = np.arange(1, MOST_CLUSTERS + 1)
    reach = np.array([confidence_sequence(Clustered(0.0, 1.0, int(n)), level=LEVEL).high for n in count])
    for effect in EFFECTS:
        first: list[float] = []
        for _ in range(RUNS):
            values = chance.normal(effect, 1.0, MOST_CLUSTERS)
            mean = values.cumsum() / count
            spread = np.maximum((values**2).cumsum() / count - mean**2, 0.0)
            error = np.sqrt(spread / np.maximum(count - 1, 1))
            first.append(_first((np.abs(mean) > reach * error) & (count >= LEAST_CLUSTERS)))
        fixed = ((normal_quantile(0.5 + LEVEL / 2) + normal_quantile(POWER)) / effect) ** 2
        yield f"{effect:.1f}", _quantile(first, 0.5), _quantile(first, POWER), str(ceil(fixed))


def days_needed() -> Iterable[Sequence[str]]:
    """Tickers, the candidate's share, the true difference, and days for half and for most runs."""
    for tickers in (5, 50):
        for share in (0.1, 0.5):
            for difference in SHIFTS:
                world = World("rate", tickers=tickers, share=share, days=MOST_DAYS, shift=log_odds(difference))
                first = [
                    _first(called(clustered_pair_difference(*look, rate=True) for look in looks))
                    for looks in runs(world, DAY_RUNS, seed=2)
                ]
                yield str(tickers), f"{share:.0%}", f"{difference:.0%}", _quantile(first, 0.5), _quantile(first, POWER)


def called(found: Iterable[Clustered | None]) -> npt.NDArray[np.bool_]:
    """Look by look, whether a difference is called."""
    return np.array(
        [
            each is not None
            and each.clusters >= LEAST_CLUSTERS
            and confidence_sequence(each, level=LEVEL).excludes_zero
            for each in found
        ]
    )


def log_odds(difference: float) -> float:
    """About what to add to the log-odds of a rate of a half to raise it by `difference`.

    Effects of days and tickers flatten the curve: by a normal approximation of the logistic with their variance.
    """
    world = World("rate")
    flat = np.sqrt(1 + (np.pi / 8) * (world.day**2 + world.ticker**2 + world.cell**2))
    rate = 0.5 + difference
    return float(flat * np.log(rate / (1 - rate)))


def answers_needed(chance: np.random.Generator) -> Iterable[Sequence[str]]:
    """Bound, true rate, answers for half and for most runs."""
    for bound in BOUNDS:
        alarm = least_hits(lambda hits, n, bound=bound: rate_evidence(hits, n, bound=bound) >= 1 / ALPHA)
        for rate in (*(bound * times for times in TRUE_RATES if bound * times < 1), 1.0):
            hits = (chance.random((RUNS, MOST_ANSWERS)) < rate).cumsum(axis=1)
            first = [_first(run >= alarm) for run in hits]
            yield f"{bound:.0%}", f"{rate:.0%}", _quantile(first, 0.5), _quantile(first, 0.95)


def least_hits(refutes: Callable[[int, int], bool]) -> npt.NDArray[np.int64]:
    """For each number of answers, how many hits it takes; more than there are where none suffice."""
    least = np.zeros(MOST_ANSWERS, dtype=np.int64)
    hits = 0
    for n in range(1, MOST_ANSWERS + 1):
        while hits <= n and not refutes(hits, n):
            hits += 1
        least[n - 1] = hits
    return least


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns under their names."""
    print("  ".join(head))
    for row in rows:
        print("  ".join(cell.rjust(len(name)) for cell, name in zip(row, head, strict=True)), flush=True)


def _first(seen: npt.NDArray[np.bool_]) -> float:
    return float(seen.argmax()) + 1 if seen.any() else np.inf


def _quantile(first: Sequence[float], share: float) -> str:
    """By when that share of runs was done."""
    at = sorted(first)[ceil(share * len(first)) - 1]
    return "-" if at == np.inf else f"{at:.0f}"


if __name__ == "__main__":
    main()
