"""`python -m libs.replay check`, and `make replay-check`."""

import subprocess
from datetime import UTC
from pathlib import Path

import pytest

from libs.replay.__main__ import main
from libs.replay.cases import CaseFileError, read_cases
from libs.replay.check_command import moment
from tests.unit.judgement_cases import ROOT
from tests.unit.replay_check_cases import (
    FAKE,
    GOLDEN,
    a_case,
    cases,
    changed,
    decided,
)


def test_the_command_says_how_it_went(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", str(FAKE)]) == 0
    assert "all as stored" in capsys.readouterr().out
    case = a_case(decided)
    allow = case.llm["policy"]["decision"]["allow"]
    path = tmp_path / "edited.jsonl"
    lines = [changed(case, "policy.decision.allow", not allow).line(), *(one.line() for one in cases()[:2])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert main(["check", str(path)]) == 1
    said = capsys.readouterr().out
    assert "1 differ" in said
    assert f"the first difference: forecast {case.forecast_id} (replay:1, {case.ticker}, " in said
    assert f"policy.decision.allow: stored {not allow}, now {allow}" in said


@pytest.mark.parametrize("content", ["nonsense\n", '{"forecast_id": "x"}\n', "[]\n"])
def test_a_file_that_cannot_be_read_names_the_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(cases()[0].line() + "\n" + content, encoding="utf-8")
    with pytest.raises(CaseFileError, match="line 2"):
        list(read_cases(path))
    assert main(["check", str(path)]) == 2
    assert f"{path}, line 2" in capsys.readouterr().err


def test_a_check_of_nothing_is_no_pass(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("", encoding="utf-8")
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr()
    assert ("all as stored" in said.out, "nothing was checked" in said.err) == (False, True)
    assert main(["check", str(path), str(FAKE)]) == 0


@pytest.mark.parametrize("word", ["yesterday", "today", "24h", "7d", "2026-01-31", "2026-01-31T09:30"])
def test_a_period_is_said_as_for_a_batch(word: str) -> None:
    assert moment(word).tzinfo is UTC


def test_what_cannot_be_done_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", str(tmp_path / "nothing.jsonl")]) == 2
    assert "nothing.jsonl" in capsys.readouterr().err
    for arguments in (["check"], ["check", "--since", "tomorrow"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "'tomorrow' is no moment: give today, yesterday, 24h" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "run"),
    [
        ([], ["tools.replay_check", "tests/data/golden/fake_engine.jsonl", "tests/data/golden/verdicts.jsonl"]),
        (["SINCE=2026-01-01"], ["--database tools.replay_check --since"]),
        (["SINCE=2026-01-01", "UNTIL=2026-02-01"], ["--database tools.replay_check --since", "--until"]),
    ],
)
def test_make_replay_check_takes_the_golden_set_or_a_period(words: list[str], run: list[str]) -> None:
    done = subprocess.run(["make", "-n", "replay-check", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    shown = done.stdout.replace(
        "tests/data/golden/*.jsonl", " ".join(f"tests/data/golden/{path.name}" for path in GOLDEN)
    )
    assert all(word in shown for word in run)
