"""CI is what `make ci` is, and gives away as little as it can."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yaml"
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
ONLY_HERE = ["anchore/sbom-action", "anchore/scan-action"]


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    [job] = workflow["jobs"].values()
    return job["steps"]


def test_the_only_workflow_is_this_one() -> None:
    assert list((ROOT / ".github" / "workflows").iterdir()) == [WORKFLOW]


def test_each_command_is_a_target_in_the_order_of_make_ci(steps: list[dict[str, Any]]) -> None:
    commands = [step["run"] for step in steps if "run" in step]
    [listed] = re.findall(r"^CI_STEPS := (.+)$", MAKEFILE, re.MULTILINE)
    assert commands == [f"make {name}" for name in listed.split()]
    for name in listed.split():
        assert re.search(rf"^{name}:", MAKEFILE, re.MULTILINE), f"make {name} is no target"
    assert "$(CI_STEPS)" in MAKEFILE.partition("\nci: ")[2].partition("\n\n")[0]


def test_what_runs_only_here_comes_last(steps: list[dict[str, Any]]) -> None:
    used = [step["uses"].partition("@")[0] for step in steps if "uses" in step]
    assert used == ["actions/checkout", "actions/setup-python", *ONLY_HERE]
    assert [step.get("uses", "").partition("@")[0] for step in steps[-2:]] == ONLY_HERE


def test_every_action_is_pinned_by_the_whole_digest_of_a_commit_and_says_its_release() -> None:
    lines = [line for line in WORKFLOW.read_text(encoding="utf-8").splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_it_may_read_and_nothing_else(workflow: dict[Any, Any], steps: list[dict[str, Any]]) -> None:
    [job] = workflow["jobs"].values()
    assert workflow["permissions"] == {}
    assert job["permissions"] == {"contents": "read"}
    assert steps[0]["with"]["persist-credentials"] is False
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as a truth
    assert "secrets." not in WORKFLOW.read_text(encoding="utf-8")


def test_nothing_runs_for_ever_or_beside_itself(workflow: dict[Any, Any], steps: list[dict[str, Any]]) -> None:
    [job] = workflow["jobs"].values()
    assert job["timeout-minutes"] <= 90
    assert all(step["timeout-minutes"] <= 30 for step in steps if "run" in step)
    assert workflow["concurrency"]["cancel-in-progress"] is True
