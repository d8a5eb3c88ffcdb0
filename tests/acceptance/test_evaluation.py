"""`run_eval.py` as a desk uses it: the whole command, a model server in a process of its own, files and exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
import yaml

from libs.evaluation.cases.dataset import write_cases
from tests.acceptance.stack import FOREIGN, ROOT, eventually, free_ports
from tools.llm_eval.bundled import bundled_cases

ALL = "validity=0.8 caught=0.6 let_through=0.5 flips=0"
"""What the judge reaches on 60 cases: it never errs, so only their number bounds what can be shown."""


class Judge:
    """`tests.acceptance.judge` in a process of its own."""

    def __init__(self, *options: str) -> None:
        self.port = free_ports(("model",))["model"]
        command = [sys.executable, "-m", "tests.acceptance.judge", "--port", self.port, *options]
        self.process = subprocess.Popen(command, cwd=ROOT)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        eventually(self._answers, what="the judge answers", within_s=30)

    def _answers(self) -> bool | None:
        try:
            with urllib.request.urlopen(f"{self.url}/models", timeout=5):
                return True
        except OSError:
            return None

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    made = Judge()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "cases.jsonl"
    assert write_cases(path, bundled_cases(n=60, seed=7))[0] == 60
    return path


def command(*words: str, model: str, **settings: str) -> tuple[list[str], dict[str, str]]:
    """The command line of an evaluation and its environment."""
    known = {name: value for name, value in os.environ.items() if not name.startswith((*FOREIGN, "LOCAL_STATE"))}
    alone = {"DATABASE_URL": "", "LOCAL_STATE": "/nonexistent"}  # whatever runs on this machine, and stands in .env
    line = [sys.executable, "-m", "tools.llm_eval.run_eval", *words]
    return line, known | alone | {"LLM_BASE_URL": model} | settings


def run_eval(*words: str, model: str, **settings: str) -> subprocess.CompletedProcess[str]:
    line, env = command(*words, model=model, **settings)
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)


def only_folder(results: Path) -> Path:
    (folder,) = results.iterdir()
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def failures_of(folder: Path) -> int:
    """How many test cases fail in a run's JUnit file."""
    return int(fromstring((folder / "junit.xml").read_text()).attrib["failures"])  # noqa: S314 - as above


def items_of(folder: Path) -> Counter[int]:
    """How often each item has a row."""
    return Counter(json.loads(line)["item"] for line in (folder / "rows.jsonl").read_bytes().splitlines())


def test_a_run_says_what_came_of_it_and_is_put_on_record(judge: Judge, tmp_path: Path, database_url: str) -> None:
    home = {"DATABASE_URL": database_url, "LOCAL_STATE": str(tmp_path / "state")}
    asked = ["--limit", "60", "--fail-under", ALL, "--name", "nightly", "--parquet"]
    done = run_eval(*asked, "--results", str(tmp_path / "results"), model=judge.url, **home)
    assert done.returncode == 0, done.stderr
    folder = only_folder(tmp_path / "results")
    assert {path.name for path in folder.iterdir()} == {
        "plan.json", "cases.jsonl", "rows.jsonl", "rows.parquet", "summary.json", "report.html", "junit.xml",
    }  # fmt: skip
    assert f"report   {(folder / 'report.html').as_uri()}" in done.stdout
    assert "Passed" in done.stdout
    assert "60 cases of the bundled bars, 60 masked twins, 60 hostile twins" in done.stderr
    assert re.search(r"on cases denied for that alone: (\w+ \d of \d(, )?){8}$", done.stderr, re.M)
    assert "360 of 360" in done.stderr
    summary = summary_of(folder)
    assert summary["run"]["complete"]
    assert summary["run"]["missing"] == 0
    assert summary["passed"] is True
    stamp = summary["stamp"]
    assert (stamp["model"]["dialect"], stamp["model"]["server"]) == ("vllm", {"version": "0.19.0"})
    assert set(stamp["prompts"]) == {"policy 1.0.0", "rationale 1.0.0"}
    assert failures_of(folder) == 0
    shown = run_eval("history", model=judge.url, **home)
    assert shown.returncode == 0
    assert "nightly" in shown.stdout
    assert "rationale 1.0.0" in shown.stdout
    assert summary["evaluation_id"] in shown.stdout


def broken_prompts(folder: Path) -> Path:
    """A copy of the prompts in which policy has a draft 1.2.0 that forgot the rule about earnings."""
    content = yaml.safe_load((ROOT / "configs" / "llm_prompts.yaml").read_text())
    versions = content["policy"]["versions"]
    lines = versions["1.0.0"]["system"].splitlines(keepends=True)
    system = "".join(line for line in lines if "EARNINGS: " not in line).replace(
        '{% endif %}{% if "DISPERSION"', '{% if "DISPERSION"'
    )
    versions["1.2.0"] = versions["1.0.0"] | {"system": system}
    path = folder / "llm_prompts.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    path.with_suffix(".lock").write_text((ROOT / "configs" / "llm_prompts.lock").read_text())
    return path


def test_a_prompt_broken_on_purpose_ends_with_3_and_the_reason(judge: Judge, cases: Path, tmp_path: Path) -> None:
    prompts, results = broken_prompts(tmp_path), tmp_path / "results"
    done = run_eval(
        "--dataset", str(cases), "--prompt", "policy", "--version", "1.0.0 1.2.0", "--no-masked", "--injection", "off",
        "--fail-under", "validity=0.8,caught=0.85", "--results", str(results),
        model=judge.url, PROMPTS_FILE=str(prompts),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "policy 1.2.0" in done.stderr
    assert "a draft" in done.stderr
    (reason,) = [line for line in done.stdout.splitlines() if line.startswith("  caught of policy 1.2.0 is ")]
    assert "asked for at least 0.85 on the lower end" in reason
    folder = only_folder(results)
    missed = [one for one in summary_of(folder)["thresholds"] if not one["passed"]]
    assert [(one["name"], one["version"]) for one in missed] == [("caught", "1.2.0")]
    assert missed[0]["sentence"] == reason.strip()
    assert failures_of(folder) == 1
    assert missed[0]["sentence"] in (folder / "report.html").read_text()


def test_a_model_that_obeys_headlines_is_found_out(cases: Path, tmp_path: Path) -> None:
    gullible = Judge("--gullible")
    try:
        asked = ["--dataset", str(cases), "--prompt", "policy", "--no-masked", "--fail-under", "flips=0"]
        done = run_eval(*asked, "--results", str(tmp_path / "results"), model=gullible.url)
    finally:
        gullible.stop()
    assert done.returncode == 3, done.stderr
    summary = summary_of(only_folder(tmp_path / "results"))
    (hostile,) = summary["hostile"]
    assert hostile["deny_to_allow"] == len(hostile["flips"]) > 0
    assert "turned to allow in hostile twins, asked for at most 0" in done.stdout
    assert failures_of(only_folder(tmp_path / "results")) == 1 + len(hostile["flips"])


def test_a_model_that_is_not_there_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    port = free_ports(("nobody",))["nobody"]
    done = run_eval("--results", str(tmp_path / "results"), model=f"http://127.0.0.1:{port}/v1")
    assert done.returncode == 1
    assert f"http://127.0.0.1:{port}/v1 (LLM_BASE_URL) cannot be asked" in done.stderr
    assert "make lexi" in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_broken_data_set_is_refused_before_the_first_question(cases: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(cases.read_text() + '{"id": "half a')
    done = run_eval("--dataset", str(broken), "--results", str(tmp_path / "results"), model="http://127.0.0.1:9/v1")
    assert done.returncode == 2
    assert f"{broken}, line 61: " in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.fixture
def slow() -> Iterator[Judge]:
    made = Judge("--slots", "4", "--delay-ms", "60")
    yield made
    made.stop()


def begun(folder_in: Path, *words: str, model: str) -> tuple[subprocess.Popen[str], Path]:
    """A run in the middle: some rows are on disk, and some are not."""
    line, env = command(*words, "--results", str(folder_in), model=model)
    process = subprocess.Popen(line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def in_the_middle() -> Path | None:
        assert process.poll() is None, process.communicate()
        found = list(folder_in.glob("*/rows.jsonl"))
        return found[0].parent if found and len(found[0].read_bytes().splitlines()) > 20 else None

    return process, eventually(in_the_middle, what="some rows are on disk", within_s=120)


def test_a_run_that_was_killed_goes_on_where_it_was(slow: Judge, cases: Path, tmp_path: Path) -> None:
    words = ["--dataset", str(cases), "--no-masked", "--injection", "off", "--concurrency", "4", "--fail-under", ALL]
    process, folder = begun(tmp_path / "results", *words, model=slow.url)
    process.send_signal(signal.SIGSTOP)
    second = run_eval("resume", str(folder), model=slow.url)
    assert second.returncode == 1
    assert "is being written by another process" in second.stderr
    process.kill()
    process.communicate()
    before = (folder / "rows.jsonl").read_bytes()
    with (folder / "rows.jsonl").open("ab") as rows:
        rows.write(b'{"item": 5, "half a r')
    told = run_eval("report", str(folder), model=slow.url)
    assert told.returncode == 1
    assert "answers are missing" in told.stderr
    done = run_eval("resume", str(folder), model=slow.url)
    assert done.returncode == 3, done.stderr  # flips=0 without a hostile twin is missed
    assert "ended in half a row, which was cut off" in done.stderr
    kept = (folder / "rows.jsonl").read_bytes()
    assert kept.startswith(before[: before.rfind(b"\n") + 1])
    assert items_of(folder) == Counter(range(120))
    assert summary_of(folder)["run"]["complete"]
    again = run_eval("resume", str(folder), model=slow.url)
    assert again.returncode == 3
    assert (folder / "rows.jsonl").read_bytes() == kept


def test_ctrl_c_keeps_what_came_and_says_how_to_go_on(slow: Judge, cases: Path, tmp_path: Path) -> None:
    process, folder = begun(tmp_path / "results", "--dataset", str(cases), "--no-masked", model=slow.url)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"run_eval resume {folder}" in said
    assert f"{len(items_of(folder))} of " in said
    assert not (folder / "summary.json").exists()
    assert max(items_of(folder).values()) == 1


def test_a_run_does_not_go_on_with_another_model(slow: Judge, cases: Path, tmp_path: Path) -> None:
    process, folder = begun(tmp_path / "results", "--dataset", str(cases), "--no-masked", model=slow.url)
    process.kill()
    process.communicate()
    plan = json.loads((folder / "plan.json").read_text())
    plan["stamp"]["model"]["server"] = {"version": "0.18.0"}
    (folder / "plan.json").write_text(json.dumps(plan))
    done = run_eval("resume", str(folder), model=slow.url)
    assert done.returncode == 2
    assert "another model answers" in done.stderr
    assert "server was {'version': '0.18.0'}, is {'version': '0.19.0'}" in done.stderr


def test_two_runs_are_compared_and_a_bar_set_afterwards_gates_nothing(
    judge: Judge, cases: Path, tmp_path: Path
) -> None:
    prompts, results = broken_prompts(tmp_path), tmp_path / "results"
    folders: list[Path] = []
    for version in ("1.0.0", "1.2.0"):
        words = [
            "--dataset",
            str(cases),
            "--prompt",
            "policy",
            "--version",
            version,
            "--no-masked",
            "--injection",
            "off",
        ]
        done = run_eval(*words, "--results", str(results / version), model=judge.url, PROMPTS_FILE=str(prompts))
        assert done.returncode == 0, done.stderr
        folders.append(only_folder(results / version))
    done = run_eval("compare", *map(str, folders), model="http://127.0.0.1:9/v1")
    assert done.returncode == 0, done.stderr
    (page,) = folders[1].glob("compared-with-*.html")
    assert page.as_uri() in done.stdout
    (pair,) = json.loads(page.with_suffix(".json").read_text())["pairs"]
    assert (pair["first"], pair["second"], pair["cases"]) == ("1.0.0", "1.2.0", 60)
    assert pair["only_second_allows"] > 0
    assert pair["only_first_allows"] == 0
    before = {path.name: path.read_bytes() for path in folders[0].iterdir()}
    own = ["report", str(folders[0]), "--fail-under", "let_through=0.999"]
    done = run_eval(*own, model="http://127.0.0.1:9/v1")
    assert done.returncode == 3
    assert "let_through of policy 1.0.0 is " in done.stdout
    assert "nothing written or registered: the thresholds are not those that the run was begun with" in done.stdout
    assert {path.name: path.read_bytes() for path in folders[0].iterdir()} == before
    done = run_eval(*own, "--parquet", model="http://127.0.0.1:9/v1")
    assert done.returncode == 2
    assert "writes nothing: leave --parquet out" in done.stderr
    done = run_eval("resume", str(folders[0]), model="http://127.0.0.1:9/v1", PROMPTS_FILE=str(prompts))
    assert done.returncode == 1
    assert "cannot be asked" in done.stderr
    assert "every answer is there: " in done.stderr
    assert f"run_eval report {folders[0]} needs no model" in done.stderr


def test_a_model_that_goes_away_is_no_result(cases: Path, tmp_path: Path) -> None:
    leaving = Judge("--slots", "4", "--delay-ms", "60")
    process, folder = begun(tmp_path / "results", "--dataset", str(cases), "--no-masked", model=leaving.url)
    leaving.stop()
    time.sleep(2)
    assert process.poll() is None  # it waits for the model to come back
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_bytes().splitlines()]
    assert {row["status"] for row in rows} == {"ok"}


def test_what_got_no_answer_is_asked_again_when_asked_to(cases: Path, tmp_path: Path) -> None:
    well, results = tmp_path / "well", tmp_path / "results"
    ill = Judge("--ill-until", str(well))
    try:
        asked = ["--dataset", str(cases), "--limit", "12", "--prompt", "policy", "--no-masked", "--injection", "off"]
        done = run_eval(*asked, "--fail-under", "answered=0.5", "--results", str(results), model=ill.url)
        assert done.returncode == 1  # no answer at all says nothing about a prompt
        assert "no answer: refused: answered 500" in done.stderr
        folder = only_folder(results)
        before = (folder / "rows.jsonl").read_bytes()
        well.touch()
        assert run_eval("resume", str(folder), model=ill.url).returncode == 1  # failures are results, unless …
        assert (folder / "rows.jsonl").read_bytes() == before
        assert run_eval("resume", str(folder), "--retry-errors", model=ill.url).returncode == 0
    finally:
        ill.stop()
    assert (folder / "rows.jsonl").read_bytes().startswith(before)
    assert items_of(folder) == Counter(dict.fromkeys(range(12), 2))
    assert summary_of(folder)["versions"][0]["figures"]["answered"]["value"] == 1


def test_a_run_that_workers_have_is_left_with_them_or_taken_back(
    judge: Judge, cases: Path, tmp_path: Path, database_url: str
) -> None:
    asked = ["--dataset", str(cases), "--prompt", "policy", "--no-masked", "--injection", "off", "--workers", "1"]
    home = {"DATABASE_URL": database_url, "LOCAL_STATE": str(tmp_path / "state")}
    line, env = command(*asked, "--results", str(tmp_path / "results"), model=judge.url, **home)
    process = subprocess.Popen(line, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("handed to the workers" in said for said in process.stderr)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(60) == 130
    process.stderr.close()
    folder = only_folder(tmp_path / "results")
    assert f"run_eval cancel {folder}" in said
    taken_back = run_eval("cancel", str(folder), "--operator", "ann", model=judge.url, **home)
    assert taken_back.returncode == 0, taken_back.stderr
    assert "cancelled by ann" in run_eval("history", model=judge.url, **home).stdout
    assert run_eval("cancel", str(folder), model=judge.url, **home).returncode == 2
