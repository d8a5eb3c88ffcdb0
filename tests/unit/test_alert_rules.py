"""Alert rules and panels name what the services export, and each alert has a line in the page for whoever is called."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.metrics_table import described, load_everything

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
PANELS = ROOT / "deploy" / "grafana" / "panels.yml"
PAGE = ROOT / "docs" / "observability.md"
SERIES = re.compile(r"\b((?:lexi|gen_ai)_(?!response_model\b|request_model\b)\w+)(?:\{([^}]*)\})?")
PARTS = re.compile(r"_(?:bucket|sum|count)$")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@cache
def exported() -> dict[str, set[str]]:
    load_everything()
    return {each.name: set(each.labels) for each in described()}


def expressions() -> list[str]:
    panels = [panel for row in yaml.safe_load(PANELS.read_text()).values() for panel in row]
    return [rule["expr"] for rule in rules()] + [each for panel in panels for each in panel["queries"].values()]


@pytest.mark.parametrize("expression", expressions())
def test_every_series_that_is_asked_for_is_exported_with_its_labels(expression: str) -> None:
    named = SERIES.findall(expression)
    assert named or "up{" in expression or "process_" in expression
    for name, selector in named:
        known = exported().get(name) or exported().get(PARTS.sub("", name))
        assert name in exported() or PARTS.sub("", name) in exported(), name
        assert set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)", selector)) <= (known or set()), (name, selector)


def test_every_alert_says_what_to_do_and_how_urgent_it_is() -> None:
    lines = {
        found[1]: found[2]
        for found in re.finditer(r"^\| `(Lexi\w+)` \| (\w+) \| .{20,} \|$", PAGE.read_text(), re.MULTILINE)
    }
    assert lines == {rule["alert"]: rule["labels"]["severity"] for rule in rules()}
    assert all(rule["annotations"]["summary"] for rule in rules())


def test_the_page_lists_exactly_what_is_exported() -> None:
    listed = re.findall(r"^\| `((?:lexi|gen_ai)_\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert listed == sorted(exported())
