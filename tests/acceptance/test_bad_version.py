"""A bad prompt version in a running stack: released, ramped and taken back by itself, as seen from outside."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from libs.exposures.counts import ArmCounts
from libs.exposures.guardrails import evaluate
from libs.llm.experiments import Experiment
from tests.acceptance.stack import ROOT, ModelServer, RunningStack, eventually, free_ports

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(600)]

KEY = "policy"
# Whoever wrote it forgot what the answer must look like, so it comes as prose.
BAD = """
    "1.2.0":
      system: You are Lexi, an analyst at a trading desk. Say what you think of the entry.
      user_template: *policy_user
      inputs: *judgement_inputs
      sampling: {temperature: 0, max_tokens: 160}
"""
WITHIN = timedelta(seconds=30)
GUARDED = "key = 'policy' and who = 'guardrail'"


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompts of the house with the bad version among them, not released yet."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
    said = (ROOT / "configs" / "llm_prompts.yaml").read_text()
    path.write_text(said.replace("\nsummary:\n", f"{BAD}\nsummary:\n"))
    path.with_suffix(".lock").write_text((ROOT / "configs" / "llm_prompts.lock").read_text())
    return path


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    server = ModelServer()
    server.start()
    yield server
    server.send(signal.SIGKILL)


@pytest.fixture(scope="module")
def stack(model: ModelServer, prompts_file: Path, state_folder: Path) -> Iterator[RunningStack]:
    running = RunningStack(
        state_folder,
        LLM_BASE_URL=f"http://127.0.0.1:{model.port}/v1",
        PROMPTS_FILE=str(prompts_file),
        FORECAST_INTERVAL_S="1",
        EXAMPLE_STRATEGY="false",
    )
    running.start()
    running.wait_until_up()
    with another_jobs_process(running, prompts_file):
        yield running
    running.stop()


@contextmanager
def another_jobs_process(stack: RunningStack, prompts_file: Path) -> Generator[None]:
    """A second services.jobs on the same database, as on another machine."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "DATABASE_", "BROKER"))}
    url = (stack.state / "database.url").read_text().strip()
    own = free_ports(("JOBS_METRICS_PORT",)) | {"DATABASE_URL": url, "PROMPTS_FILE": str(prompts_file)}
    own |= {"LOCAL_STATE": str(stack.state.parent / "other"), "PAPER_PORT": stack.ports["PAPER_PORT"]}
    own |= {"LLM_BASE_URL": stack.settings["LLM_BASE_URL"]}
    process = subprocess.Popen([sys.executable, "-m", "services.jobs"], cwd=ROOT, env=clean | own)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def asked_of(stack: RunningStack) -> dict[str, Any]:
    status, told = stack.get("API_PORT", f"/llm/admin/prompts/{KEY}")
    assert status == 200, told
    return told


def crossing(stack: RunningStack, phase: str) -> datetime:
    """When the exposures of a phase had first broken a guardrail, by the same evidence, judged one by one."""
    experiment = Experiment((("1.0.0", 50.0), ("1.2.0", 50.0)), phase=phase, control="1.0.0")
    rows = stack.sql(
        f"select judged_at at time zone 'UTC', arm, (status = 'invalid')::int from exposures "
        f"where phase = '{phase}' and status in ('ok', 'invalid') order by judged_at"
    )
    seen = {"1.0.0": [0, 0], "1.2.0": [0, 0]}
    for row in rows:
        at, arm, invalid = row.split("|")
        seen[arm][0] += 1
        seen[arm][1] += int(invalid)
        counts = {name: ArmCounts(name, judged=n, invalid=hits) for name, (n, hits) in seen.items()}
        if any(state.breached for state in evaluate(experiment, counts)):
            return datetime.fromisoformat(at)
    raise AssertionError(f"no guardrail was ever crossed by {seen}")


def test_a_bad_version_is_taken_back_and_the_whole_story_is_on_record(stack: RunningStack, prompts_file: Path) -> None:
    # Released and given to half of the units, without a replay and with a reason.
    release = [sys.executable, "-m", "libs.llm.registry", "--file", str(prompts_file), "release", KEY, "1.2.0"]
    done = subprocess.run(release, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    eventually(
        lambda: asked_of(stack)["versions"]["1.2.0"]["released_at"], what="the release is seen without a restart"
    )
    done = stack.make("ramp", f"KEY={KEY}", "VERSION=1.2.0", "PERCENT=50", "REASON=to see it fail", "OPERATOR=ann")
    assert done.returncode == 0, done.stderr
    (ramped,) = stack.sql(f"select id from activations where key = '{KEY}'")
    phase = f"activation-{ramped}"

    # It is taken back, once, although two processes look.
    rows = eventually(
        lambda: (
            stack.sql(f"select id, at at time zone 'UTC', version, arms, why from activations where {GUARDED}") or None
        ),
        what="a guardrail takes the version back",
    )
    (row,) = rows
    number, at, version, arms, why = row.split("|", 4)
    assert (version, arms) == ("1.0.0", "")
    assert why.startswith("1.2.0, invalid_rate: ")
    assert datetime.fromisoformat(at) - crossing(stack, phase) < WITHIN

    # Every process gives only the control from then on, and says so.
    eventually(lambda: asked_of(stack)["arms"] == {} or None, what="the api has it in force")
    told = asked_of(stack)
    assert (told["active"], told["source"], told["activation"]["who"]) == ("1.0.0", "activation", "guardrail")

    def forecasts_by_the_control() -> bool | None:
        with urlopen(f"http://127.0.0.1:{stack.ports['FORECAST_METRICS_PORT']}/metrics") as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("lexi_prompt_in_force")]
        mine = [line for line in lines if f'key="{KEY}"' in line]
        return True if len(mine) == 1 and 'version="1.0.0"' in mine[0] and mine[0].endswith(" 1.0") else None

    eventually(forecasts_by_the_control, what="the forecast loop has it in force")
    (since,) = stack.sql("select clock_timestamp()")
    later = (
        f"features->'llm'->'policy'->>'prompt_version' from forecasts where ts > '{since}' and judged_at is not null"
    )
    eventually(lambda: len(stack.sql(f"select {later}")) >= 20 or None, what="later forecasts")
    assert set(stack.sql(f"select distinct {later}")) == {"1.0.0"}
    assert stack.sql(f"select count(*) from exposures where assigned_at > '{since}'") == ["0"]

    # The whole story, from the records.
    assert stack.sql(f"select count(*) from activations where {GUARDED}") == ["1"]
    (alert,) = stack.sql("select text from alerts where kind = 'guardrail'")
    assert "Prompt policy: version 1.2.0 was taken back and 1.0.0 is given instead" in alert
    status, refused = stack.get("API_PORT", f"/llm/admin/experiments/{KEY}")
    assert (status, f"the last phase was {phase}" in refused["detail"]) == (404, True)
    status, report = stack.get("API_PORT", f"/llm/admin/experiments/{KEY}?phase={phase}")
    assert (status, report["state"], report["control"]) == (200, "ended", "1.0.0")
    broken = [state for state in report["guardrails"] if state["breached"]]
    assert [(state["arm"], state["name"]) for state in broken] == [("1.2.0", "invalid_rate")]
    assert [(change["who"], change["id"]) for change in report["history"]] == [
        ("guardrail", int(number)),
        ("ann", int(ramped)),
    ]
    again = stack.make("ramp", f"KEY={KEY}", "VERSION=1.2.0", "PERCENT=10", "OPERATOR=ann")
    assert again.returncode != 0

    written = stack.make("experiment", f"KEY={KEY}", f"PHASE={phase}")
    assert written.returncode == 0, written.stderr
    page = (stack.state / f"experiment-{KEY}.html").read_text()
    assert "to see it fail" in page
    assert "<script" not in page
