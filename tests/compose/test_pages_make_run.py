"""The commands that the runbook and the page on backups show for `make run`, where they differ from Compose's."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.stack import ROOT, RunningStack, eventually
from tests.compose.model import LOOPBACK, HostModel
from tests.compose.page import Page
from tests.compose.pasting import PORT, until

pytestmark = pytest.mark.timeout(1200)

PORTS = {
    "8001": "API_PORT",
    "8002": "ANALYTICS_PORT",
    "9101": "FORECAST_METRICS_PORT",
    "9102": "JOBS_METRICS_PORT",
}
STATE = re.compile(r"(?<![\w.])\.local(?=[/ ])")
RUNBOOK = Page(ROOT / "docs" / "runbook.md")
BACKUP = Page(ROOT / "docs" / "backup.md")
FLAT = "Need immediate flat"
DENIED = "Policy rejects every trade"


@pytest.fixture(scope="module")
def model() -> Iterator[HostModel]:
    made = HostModel(hosts=(LOOPBACK,), api_key="lexi-of-make-run")
    made.mend()
    yield made
    made.close()


@pytest.fixture(scope="module")
def stack(model: HostModel, state_folder: Path) -> Iterator[RunningStack]:
    running = RunningStack(
        state_folder,
        LLM_BASE_URL=f"http://{LOOPBACK}:{model.port}/v1",
        LLM_API_KEY="lexi-of-make-run",
        FORECAST_INTERVAL_S="2",
        MAX_ORDERS_PER_MIN="600",
    )
    running.start()
    running.wait_until_up()
    yield running
    running.stop()


def paste(stack: RunningStack, model: HostModel, text: str) -> str:
    """Run commands as they stand there, on this stack's ports and state; what they printed."""
    ports = {said: stack.ports[name] for said, name in PORTS.items()} | {"8008": str(model.port)}
    shell = RUNBOOK.commands("First, in your shell", "shell", house="run")
    here = STATE.sub(str(stack.state), PORT.sub(lambda found: ports[found[1]], shell + text))
    done = subprocess.run(
        ["bash", "-e", "-c", here], cwd=ROOT, env=stack._environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def told(stack: RunningStack, model: HostModel, section: str, step: str) -> str:
    """Do one step of the runbook."""
    return paste(stack, model, RUNBOOK.commands(section, step, house="run"))


def test_the_first_look_and_the_names_and_the_chain(stack: RunningStack, model: HostModel) -> None:
    shown = until(lambda: told(stack, model, "First, in your shell", "overview"), '"ok":true')
    assert shown.count("green  lexi") == 3
    assert '"Lexi"' in told(stack, model, "ok:false though Lexi is up", "names")
    assert "rows hold" in told(stack, model, "Postgres was away", "chain")


def test_what_the_model_said_and_a_prompt_taken_back(stack: RunningStack, model: HostModel) -> None:
    until(lambda: told(stack, model, DENIED, "raw"), '"allow": true')
    done = stack.make("promote", "KEY=policy", "VERSION=1.1.0", "REASON=to try it")
    assert done.returncode == 0, done.stderr
    told(stack, model, DENIED, "rollback")
    eventually(
        lambda: stack.get("API_PORT", "/llm/admin/prompts/policy")[1]["active"] == "1.0.0" or None,
        what="1.0.0 is in force again",
    )


def test_flat_and_halt_by_hand_and_a_rearm(stack: RunningStack, model: HostModel) -> None:
    eventually(lambda: stack.get("PAPER_PORT", "/v2/positions")[1] or None, what="the example holds something")
    shown = told(stack, model, FLAT, "flat")
    assert json.loads(next(line for line in shown.splitlines() if line.startswith("{")))["state"] == "FLAT"
    assert stack.get("PAPER_PORT", "/v2/positions")[1] == []
    eventually(lambda: stack.sql("select 1 from halts where rearmed_at is null") or None, what="the halt has its row")
    stack.sql("update halts set halted_until = now()")  # the hour has passed
    until(lambda: told(stack, model, FLAT, "rearm") + told(stack, model, FLAT, "account"), '"halted":false')
    told(stack, model, FLAT, "halt")
    until(lambda: told(stack, model, FLAT, "account"), '"halted":true')


def test_a_backup_and_a_restore_and_a_start_on_it(stack: RunningStack, model: HostModel) -> None:
    shown = paste(stack, model, BACKUP.commands("A backup", "database", house="run"))
    assert "gate_verdicts" in shown
    paste(stack, model, BACKUP.commands("What lies outside Postgres", "outside", house="run"))
    listed = subprocess.run(["tar", "-tf", stack.state / "backups" / "state.tar"], capture_output=True, text=True)
    assert {"./halt", "./keys.json", "./operator.key", "./panic_journal.jsonl"} <= set(listed.stdout.splitlines())
    stack.stop()
    restore, last = BACKUP.commands("A restore", "restore", house="run").rsplit("make run\n", 1)
    assert last == ""
    assert "the chain of verdicts holds" in paste(stack, model, restore)
    stack.start()
    stack.wait_until_up()
    until(lambda: told(stack, model, FLAT, "account"), '"halted":true')  # the halt outlived it
    assert "rows hold" in told(stack, model, "Postgres was away", "chain")
