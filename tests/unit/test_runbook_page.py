"""The runbook and the page on backups as pages: every row is there, for both ways of running, and names what exists.

`make compose-test` does what they say.
"""

import re
from pathlib import Path

import pytest

from tests.compose.page import BLOCK, Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {name: Page(DOCS / name) for name in ("runbook.md", "backup.md")}
ROWS = (
    "Connection refused",
    "ok:false though Lexi is up",
    "CUDA out of memory",
    "Policy rejects every trade",
    "Summaries are missing",
    "Replay returns a cached response",
    "Need immediate flat",
)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_says_how_to_look_or_act(row: str) -> None:
    said = PAGES["runbook.md"].sections[row]
    assert "**Do.**" in said or "what to do.**" in said
    assert PAGES["runbook.md"].blocks(row)


@pytest.mark.parametrize("name", PAGES)
def test_a_step_of_one_way_of_running_has_a_sister_in_the_other(name: str) -> None:
    only = {("runbook.md", "containers"), ("runbook.md", "inside"), ("runbook.md", "mend"), ("runbook.md", "start")}
    for section in PAGES[name].sections:
        blocks = PAGES[name].blocks(section)
        houses = {each.step: {other.house for other in blocks if other.step == each.step} for each in blocks}
        for step, found in houses.items():
            assert found in ({"both"}, {"run", "compose"}) or (name, step) in only or name == "backup.md"


@pytest.mark.parametrize("name", PAGES)
def test_no_block_of_commands_is_misspelt(name: str) -> None:
    text = PAGES[name].text
    fences = re.findall(r"^```(.*)$", text, re.MULTILINE)
    opened = fences[::2]
    assert set(fences[1::2]) <= {""}
    assert len([each for each in opened if each.startswith("sh ")]) == len(BLOCK.findall(text))


@pytest.mark.parametrize("name", PAGES)
def test_targets_modules_and_pages_that_are_named_exist(name: str) -> None:
    text = PAGES[name].text
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?<![\w-])make ([a-z][a-z-]+)(?= [A-Z]+=|`|$)", text, re.MULTILINE)) <= targets
    for module in re.findall(r"-m ((?:libs|services|tools)\.[a-z_.]+)", text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    for page in re.findall(r"\]\(([a-z_]+\.md)", text):
        assert (DOCS / page).exists(), page


@pytest.mark.parametrize("name", PAGES)
def test_links_within_a_page_meet_a_heading(name: str) -> None:
    text = PAGES[name].text
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
