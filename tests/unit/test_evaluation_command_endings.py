"""How a run ends that does not come to its verdict: what is kept, what is said, and with which exit code."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from libs.evaluation.running.folder import Folder
from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.unit.evaluation_running_cases import plan_of, until
from tools.llm_eval.carrying import Carried
from tools.llm_eval.refusal import HarnessFailed, UsageRefused
from tools.llm_eval.running import broken_off, require_same_model
from tools.llm_eval.server import Server, differences
from tools.llm_eval.stamp import ROOT

ALLOW = json.dumps({"allow": True, "reasons": [], "flags": []})
PROCESS = asyncio.subprocess.Process
CLEAN = ("--prompt", "policy", "--limit", "12", "--injection", "off", "--no-masked")


@pytest.fixture
async def fake() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(dialect="vllm", slots=64, reply=ALLOW, delay_s=0.01) as engine:
        yield engine


async def started(*words: str, model: str) -> PROCESS:
    """The command as a process of its own, at a model and without a database."""
    env = {"PATH": "/usr/bin:/bin", "LLM_BASE_URL": model, "DATABASE_URL": "", "LOCAL_STATE": "/nonexistent"}
    line = [sys.executable, "-m", "tools.llm_eval.run_eval", *words]
    return await asyncio.create_subprocess_exec(*line, cwd=ROOT, env=env, stdout=-1, stderr=-1)


async def ended(going: Awaitable[PROCESS]) -> tuple[int | None, str]:
    """Its exit code and what it said."""
    process = await going
    _, said = await process.communicate()
    return process.returncode, said.decode()


def only_folder(results: Path) -> Path:
    (folder,) = results.iterdir()
    return folder


async def some_unanswered(fake: FakeEngine, results: Path) -> Path:
    """A run that is whole, a third of it without an answer."""
    count = iter(range(1_000_000))
    fake.fault_status = 400

    def reply(_: object) -> Reply:
        return Reply("", fault=Fault.STATUS) if next(count) % 3 == 0 else Reply(ALLOW)

    fake.reply = reply
    code, said = await ended(started(*CLEAN, "--results", str(results), model=fake.base_url))
    assert code == 0, said
    return only_folder(results)


@pytest.mark.parametrize("status", [400, 500])
async def test_a_run_without_any_answer_is_a_failure_of_the_harness(
    fake: FakeEngine, tmp_path: Path, status: int
) -> None:
    fake.fault_status, fake.fault = status, Fault.STATUS
    code, said = await ended(started(*CLEAN, "--results", str(tmp_path / "results"), model=fake.base_url))
    assert code == 1
    assert "none of 12 questions got an answer: this says nothing about any prompt" in said
    folder = only_folder(tmp_path / "results")
    assert f"run_eval resume {folder} --retry-errors" in said
    assert len((folder / "rows.jsonl").read_bytes().splitlines()) == 12
    assert (folder / "report.html").exists()


async def test_a_retry_that_is_stopped_is_not_over(fake: FakeEngine, tmp_path: Path) -> None:
    folder = await some_unanswered(fake, tmp_path / "results")
    before = (folder / "rows.jsonl").read_bytes()
    fake.fault, fake.reply = Fault.SILENT, ALLOW
    process = await started("resume", str(folder), "--retry-errors", model=fake.base_url)
    await until(lambda: fake.active > 0)
    process.send_signal(signal.SIGINT)
    code, said = await ended(asyncio.sleep(0, process))
    assert code == 130
    assert "8 of 12 answers are safe" in said
    assert f"run_eval resume {folder} --retry-errors" in said
    assert (folder / "rows.jsonl").read_bytes() == before


def test_only_a_run_that_has_just_begun_is_removed_where_the_model_never_answered(tmp_path: Path) -> None:
    """Somebody may have put notes into a folder that is gone on with."""
    folder, plan = Folder(tmp_path / "run"), plan_of(12)
    folder.path.mkdir()
    away = Carried(12, 0, "the model is away: connect_failed")
    assert broken_off(folder, plan, away, begun=False, retry=False) == 1
    assert folder.path.is_dir()
    with pytest.raises(HarnessFailed, match="Nothing was written"):
        broken_off(folder, plan, away, begun=True, retry=False)
    assert not folder.path.exists()


VLLM = {"name": "Lexi", "dialect": "vllm", "models": [{"id": "Lexi"}], "server": {"version": "0.19.0", "root": "a"}}


@pytest.mark.parametrize(
    ("now", "names"),
    [
        (VLLM, []),
        (VLLM | {"server": {}}, []),
        (VLLM | {"models": []}, []),
        (VLLM | {"server": {"version": "0.19.0"}}, []),
        (VLLM | {"server": {"version": "0.18.0"}}, ["server"]),
        (VLLM | {"name": "Other", "models": [{"id": "Other"}]}, ["name", "models"]),
        (VLLM | {"dialect": "llamacpp", "server": {"model_file": "x.gguf"}}, ["dialect"]),
    ],
)
def test_another_model_is_told_by_what_both_fingerprints_know(now: dict[str, object], names: list[str]) -> None:
    assert [name for name, _, _ in differences(VLLM, now)] == names
    assert [name for name, _, _ in differences(now, VLLM)] == names


@pytest.mark.parametrize("stamp", [{}, {"model": None}, {"model": "Lexi"}])
def test_a_plan_that_does_not_say_its_model_cannot_be_gone_on_with(stamp: dict[str, object]) -> None:
    plan = plan_of(1, stamp=stamp)
    server = Server(base_url="http://127.0.0.1:8008/v1", model="Lexi", dialect="vllm", fingerprint={}, embedded=False)
    with pytest.raises(UsageRefused, match=r"plan\.json does not say which model"):
        require_same_model(plan, server)
