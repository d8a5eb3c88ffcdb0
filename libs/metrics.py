"""Counters and histograms for code that counts thousands of times a second on one event loop.

prometheus_client's own take a lock and several calls for each number. These are plain numbers, read when somebody
scrapes; they look and are spelled the same there. Not for use from several threads.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import inf

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString  # pyright: ignore[reportUnknownVariableType]


class CounterCell:
    """The count of one series."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Count."""
        self.value += amount


class HistogramCell:
    """The observations of one series. `counts` has one place for each bound and one for what is above them all."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Put a value into its bucket."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Counters(Collector):
    """A counter with labels. `name` is without `_total`."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], *, registry: CollectorRegistry = REGISTRY
    ) -> None:
        self._described = name, documentation
        self._labels = tuple(labels)
        self._cells: dict[tuple[str, ...], CounterCell] = {}
        registry.register(self)

    def labels(self, *values: object) -> CounterCell:
        """The series of these label values. Keep it: looking it up costs more than counting."""
        return self._cells.setdefault(_names(values, self._labels), CounterCell())

    def remove(self, *values: object) -> None:
        """Forget a series."""
        self._cells.pop(_names(values, self._labels), None)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of its labels, in order."""
        return self._labels

    def describe(self) -> Iterable[Metric]:
        """Name and kind, for the registry, before anything was counted."""
        return [CounterMetricFamily(*self._described, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        family = CounterMetricFamily(*self._described, labels=self._labels)
        for values, cell in self._cells.items():
            family.add_metric(values, cell.value)
        return [family]


class Histograms(Collector):
    """A histogram with labels; `buckets` are the upper bounds in rising order, without infinity."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._described = name, documentation
        self._labels = tuple(labels)
        self._bounds = tuple(float(bound) for bound in buckets)
        self._cells: dict[tuple[str, ...], HistogramCell] = {}
        registry.register(self)

    def labels(self, *values: object) -> HistogramCell:
        """The series of these label values. Keep it: looking it up costs more than observing."""
        return self._cells.setdefault(_names(values, self._labels), HistogramCell(self._bounds))

    def remove(self, *values: object) -> None:
        """Forget a series."""
        self._cells.pop(_names(values, self._labels), None)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of its labels, in order."""
        return self._labels

    def describe(self) -> Iterable[Metric]:
        """Name and kind, for the registry, before anything was observed."""
        return [HistogramMetricFamily(*self._described, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        family = HistogramMetricFamily(*self._described, labels=self._labels)
        bounds = [floatToGoString(bound) for bound in (*self._bounds, inf)]
        for values, cell in self._cells.items():
            reached = zip(bounds, accumulate(cell.counts), strict=True)
            family.add_metric(values, buckets=[(bound, float(count)) for bound, count in reached], sum_value=cell.total)
        return [family]


def _names(values: tuple[object, ...], labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(values) != len(labels):
        raise ValueError(f"{len(values)} values for the labels {', '.join(labels)}")
    return tuple(str(value) for value in values)
