"""`run_eval.py` says no: what is wrong with a request, and where, with the right exit code and nothing written."""

import json
from pathlib import Path

import pytest

from libs.evaluation.cases.dataset import write_cases
from tools.llm_eval.bundled import bundled_cases
from tools.llm_eval.run_eval import main

NOBODY = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No model answers, no stack runs."""
    monkeypatch.setenv("LLM_BASE_URL", NOBODY)
    monkeypatch.setenv("LOCAL_STATE", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("cases") / "cases.jsonl"
    assert write_cases(path, bundled_cases(n=4, seed=7))[0] == 4
    return path.read_text().splitlines(keepends=True)


def broken_line(kind: str, lines: list[str]) -> str:
    """The third line of a data set, with something wrong."""
    document = json.loads(lines[2])
    if kind == "torn":
        return lines[2][:-20] + "\n"
    if kind == "twice":
        return lines[0]
    if kind == "surplus":
        return json.dumps(document | {"surplus": 1}) + "\n"
    if kind == "missing":
        return json.dumps({name: value for name, value in document.items() if name != "feed"}) + "\n"
    return json.dumps(document | {"moments": {"factors": "2100-01-01T00:00:00Z"}}) + "\n"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("torn", "line 3: "),
        ("surplus", "line 3: surplus"),
        ("missing", "line 3: feed"),
        ("future", "factors"),
        ("twice", "comes twice"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_refused_before_the_model_is_looked_for(
    lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, said: str
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("".join([*lines[:2], broken_line(kind, lines), *lines[3:]]))
    assert main(["--dataset", str(broken), "--results", str(tmp_path / "results")]) == 2
    told = capsys.readouterr().err
    assert f"{broken}, line 3: " in told
    assert said in told
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--prompt", "policy", "--version", "9.9.9"], 2, "policy has no version 9.9.9, only 1.0.0, 1.1.0"),
        (["--prompt", "summary"], 2, "only rationale and policy are asked about a signal"),
        (["--dataset", "nothing.jsonl"], 2, "nothing.jsonl: "),
        (["--dataset", "README.md"], 2, "a data set ends in .jsonl or .parquet"),
        (["--cache", "on"], 2, "--cache on needs the database"),
        (["--rate", "5", "--workers", "2"], 2, "--rate and --workers do not go together"),
        (["resume", "nothing"], 2, "nothing is no folder of results"),
        (["report", "nothing"], 2, "nothing is no folder of results"),
        (["compare", "nothing", "either"], 2, "nothing is no folder of results"),
        (["cancel", "nothing"], 2, "nothing is no folder of results"),
        (["history"], 1, "evaluations are on record in Postgres: DATABASE_URL is not set"),
        (["--workers", "2"], 1, "--workers needs the Postgres of the workers"),
        ([], 1, f"the model at {NOBODY} (LLM_BASE_URL) cannot be asked: "),
    ],
)
def test_what_cannot_be_done_is_said_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    is_run = not words or words[0].startswith("--")
    results = tmp_path / "results"
    assert main([*words, *(["--results", str(results)] if is_run else [])]) == code
    told = capsys.readouterr()
    assert said in told.err
    assert len(told.err.splitlines()) == 1
    assert "report" not in told.out
    assert not results.exists()


def test_prompts_that_were_edited_in_place_are_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "llm_prompts.yaml"
    text = Path("configs/llm_prompts.yaml").read_text()
    prompts.write_text(text.replace("May the desk enter a position on this signal?", "Allow this signal.", 1))
    prompts.with_suffix(".lock").write_text(Path("configs/llm_prompts.lock").read_text())
    monkeypatch.setenv("PROMPTS_FILE", str(prompts))
    assert main(["--prompt", "policy"]) == 2
    assert "key policy, version 1.0.0: was edited after its release" in capsys.readouterr().err
