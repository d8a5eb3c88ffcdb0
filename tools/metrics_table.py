"""Keeps the metrics in `docs/observability.md` as in the code: `python -m tools.metrics_table --check` or `--write`."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

import libs
import services
from libs.metrics import Counters, Histograms
from tools.generated import replaced, write_or_check

PAGE = Path(__file__).parents[1] / "docs" / "observability.md"
BEGIN = "<!-- metrics: written by `make fix` from the code -->"
END = "<!-- end of the metrics -->"
NOT_OURS = ("python_", "process_")


@dataclass(frozen=True, slots=True, order=True)
class Described:
    """One metric as Prometheus knows it. `module` is where it is counted."""

    name: str
    kind: str
    labels: tuple[str, ...]
    says: str


def load_everything() -> None:
    """Import every module of ours, so that each has registered what it counts."""
    for package in (libs, services):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__") and ".migrations" not in found.name:
                importlib.import_module(found.name)


def described() -> Iterator[Described]:
    """Everything in the registry that is ours, in order of its name."""
    collectors = set(REGISTRY._collector_to_names)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - nothing public lists them
    found: set[Described] = set()
    for collector in collectors:
        if not isinstance(collector, MetricWrapperBase | Counters | Histograms):
            continue
        labels = _labels_of(collector)
        for metric in collector.describe():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            if not name.startswith(NOT_OURS):
                found.add(Described(name, metric.type, labels, metric.documentation.rstrip(".")))
    yield from sorted(found)


def _labels_of(collector: MetricWrapperBase | Counters | Histograms) -> tuple[str, ...]:
    if isinstance(collector, Counters | Histograms):
        return collector.label_names
    names: Any = vars(collector)["_labelnames"]
    return tuple(names)


def table() -> str:
    """The metrics as a table, by name."""
    lines = ["| metric | kind | labels | |", "|---|---|---|---|"]
    for each in described():
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.says} |")
    return "\n".join(lines)


def page() -> str:
    """The page with its table written anew. Raises `ValueError` when it has no place for one."""
    load_everything()
    return replaced(PAGE.read_text(encoding="utf-8"), table(), begin=BEGIN, end=END)


if __name__ == "__main__":
    write_or_check(PAGE, page, source="the code")
