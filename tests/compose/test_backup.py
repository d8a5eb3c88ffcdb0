"""A backup of the running stack by the commands of the page, and another stack that starts on it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.stack import ROOT, eventually
from tests.compose.page import Page
from tests.compose.pasting import paste
from tests.compose.stack import ComposeStack, judged
from tests.compose.test_stack import entry

pytestmark = pytest.mark.timeout(2400)

BACKUP = Page(ROOT / "docs" / "backup.md")
SAVE = "A backup"
OUTSIDE = "What lies outside Postgres"
RESTORE = "A restore"
PARTITIONS = "select relname from pg_class where relispartition and relkind = 'r'"
MONTHS = "select distinct 'forecasts', to_char(as_of at time zone 'utc', 'YYYYMM') from forecasts"
COUNTS = "select (select count(*) from forecasts), (select count(*) from gate_verdicts), (select count(*) from orders)"


@pytest.fixture
def saved(stack: ComposeStack) -> Path:
    """A backup of the database and of what lies outside it, made while everything runs."""
    entry(stack)
    paste(stack, BACKUP, SAVE, "database")
    paste(stack, BACKUP, OUTSIDE, "outside")
    (dump,) = (stack.folder / "backups").glob("*.dump")
    assert dump.read_bytes().startswith(b"PGDMP")
    return stack.folder / "backups"


@pytest.fixture
def other(stack: ComposeStack, saved: Path, tmp_path: Path) -> Iterator[ComposeStack]:
    """A stack that has never run, with the backup in its folder."""
    made = ComposeStack(tmp_path / "other", model=stack.model)
    made.settings |= stack.settings
    try:
        made.prepare(secrets=stack.folder / "secrets")
        saved.rename(made.folder / "backups")
        yield made
    finally:
        made.down()


def test_a_stack_starts_on_a_backup_with_all_that_was_in_it(stack: ComposeStack, other: ComposeStack) -> None:
    verdicts = stack.sql("select hash from gate_verdicts order by seq")
    shown = paste(other, BACKUP, RESTORE, "database")
    assert "the chain of verdicts holds" in shown
    restored = other.sql("select hash from gate_verdicts order by seq")
    assert restored
    assert verdicts[: len(restored)] == restored
    held = [set(each.sql(PARTITIONS)) for each in (other, stack)]
    assert held[0] <= held[1]  # the first went on meanwhile, and may have made more
    assert held[0] >= {f"{table}_{month}" for table, month in (row.split("|") for row in other.sql(MONTHS))}
    paste(other, BACKUP, RESTORE, "outside")
    paste(other, BACKUP, RESTORE, "start")
    other.until_ready()
    assert int(other.sql(COUNTS)[0].split("|")[1]) == len(restored)
    newest = other.sql("select max(as_of) from forecasts")
    eventually(lambda: other.sql("select max(as_of) from forecasts") > newest or None, what="forecasts go on")
    eventually(judged(other), what="a judged forecast")
    eventually(lambda: paste(other, BACKUP, RESTORE, "check") or None, what="the chain verifies")
    status, recent = other.get("API_PORT", "/strategist/recent?limit=100")
    assert status == 200, json.dumps(recent)
    assert len(recent) >= 1


def test_a_restore_into_a_database_in_use_is_refused(stack: ComposeStack, saved: Path) -> None:
    before = stack.sql(COUNTS)
    with pytest.raises(AssertionError, match="restore into an empty one"):
        paste(stack, BACKUP, RESTORE, "database")
    assert stack.sql(COUNTS)[0].split("|")[1] == before[0].split("|")[1]
