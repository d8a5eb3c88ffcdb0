"""The front door says what there is, and says at once what it cannot run on."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_make_alone_prints_every_target_a_user_may_call() -> None:
    shown = make().stdout
    for target in ("run", "test", "proof", "check", "bench", "lexi", "test-llm", "prompts", "key"):
        assert f"make {target} " in shown


def test_an_unsupported_python_is_told_at_once(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = "--version" ] && echo "Python 3.9.1"\nexit 1\n')
    old.chmod(0o755)
    told = make("supported", f"PYTHON={old}")
    assert told.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 is needed" in told.stderr
    assert "Python 3.9.1" in told.stderr


def test_another_platform_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uname = tmp_path / "uname"
    uname.write_text('#!/bin/sh\n[ "$1" = "-s" ] && echo Darwin || echo arm64\n')
    uname.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    told = make("supported")
    assert told.returncode != 0
    assert "Lexi Gateway runs on Linux on x86-64; this is Darwin on arm64." in told.stderr
