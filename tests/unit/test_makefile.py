"""The front door says what there is, and says at once what it cannot run on."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tools.local_stack.embedded import SOCKET, not_running
from tools.local_stack.supervise import claim

ROOT = Path(__file__).parents[2]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_make_alone_prints_every_target_a_user_may_call() -> None:
    shown = make().stdout
    at_the_desk = ("panic", "rearm", "drill", "gate-off", "gate-on", "shadow-off", "shadow-on", "switches", "chain")
    of_prompts = ("prompts", "promote", "ramp", "rollback")
    for target in ("run", "test", "proof", "check", "bench", "lexi", "test-llm", "key", *of_prompts, *at_the_desk):
        assert f"make {target} " in shown


def test_the_targets_stand_under_headings_in_one_column() -> None:
    title, *parts = make().stdout.split("\n\n")
    assert title.splitlines()[1].startswith("  make help ")
    headings = [part.splitlines()[0] for part in parts]
    assert headings == ["Run it", "At the desk", "Prompts", "Check and prove", "Containers", "Set up"]
    lines = [line for part in parts for line in part.splitlines()[1:]]
    columns = {re.match(r"  make [a-z-]+ {2,}", line) for line in lines}
    assert {found and found.end() for found in columns} == {24}


def test_every_target_is_phony_and_every_part_of_the_file_has_a_heading() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = " ".join(re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)).split()
    assert sorted(phony) == sorted(re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.MULTILINE))


def test_the_dry_run_of_a_panic_exit_is_offered() -> None:
    assert "make panic DRY_RUN=1" in make().stdout


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


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the Makefile and a virtual environment whose python says what it was called with."""
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    return tmp_path


def called(here: Path, *words: str) -> list[str]:
    """What python was called with, and nothing else was done: no install, no look for another Python."""
    known = {name: value for name, value in os.environ.items() if name not in {"REASON", "TTL", "OPERATOR", "MINUTES"}}
    command, env = ["make", *words], known | {"USER": "nightdesk"}
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


ODD = """it's "odd"; `false` ; > x"""


@pytest.mark.parametrize(
    ("words", "module", "arguments"),
    [
        (["panic"], ["libs.trading.panic"], []),
        (["panic", f"REASON={ODD}", "TTL=5"], ["libs.trading.panic"], ["--reason", ODD, "--ttl-minutes", "5"]),
        (["panic", "DRY_RUN=1"], ["libs.trading.panic"], ["--dry-run"]),
        (["drill"], ["libs.trading.drill"], []),
        (
            ["rearm", "OPERATOR=Ann B", f"REASON={ODD}", "CONFIRM=REARM"],
            ["--database", "libs.trading.rearm"],
            ["--operator", "Ann B", "--reason", ODD, "--confirm", "REARM"],
        ),
        (
            ["gate-off", "REASON=x", "MINUTES=5"],
            ["--database", "libs.switches"],
            ["gate-off", "--reason", "x", "--operator", "nightdesk", "--minutes", "5"],
        ),
        (["gate-on", "OPERATOR=ann"], ["--database", "libs.switches"], ["gate-on", "--operator", "ann"]),
        (
            ["shadow-off", "REASON=x"],
            ["--database", "libs.switches"],
            ["shadow-off", "--reason", "x", "--operator", "nightdesk"],
        ),
        (["shadow-on"], ["--database", "libs.switches"], ["shadow-on", "--operator", "nightdesk"]),
        (["switches"], ["--database", "libs.switches"], ["show"]),
        (["prompts"], ["--database-if-there", "libs.llm.registry"], ["list"]),
        (
            ["promote", "KEY=policy", "VERSION=1.1.0", f"REASON={ODD}"],
            ["--database", "libs.llm.registry"],
            ["promote", "policy", "1.1.0", "--reason", ODD, "--operator", "nightdesk"],
        ),
        (
            ["ramp", "KEY=policy", "VERSION=1.1.0", "PERCENT=10", "OPERATOR=Ann B"],
            ["--database", "libs.llm.registry"],
            ["ramp", "policy", "1.1.0", "10", "--operator", "Ann B"],
        ),
        (
            ["rollback", "KEY=policy"],
            ["--database", "libs.llm.registry"],
            ["rollback", "policy", "--operator", "nightdesk"],
        ),
        (
            ["rollback", "KEY=policy", "FURTHER=1", "REASON=x"],
            ["--database", "libs.llm.registry"],
            ["rollback", "policy", "--further", "--reason", "x", "--operator", "nightdesk"],
        ),
        (["chain"], ["--database", "libs.trading.audit"], ["verify"]),
        (["backup"], ["--database", "tools.backup"], ["dump"]),
        (["backup", "FILE=a b.dump"], ["--database", "tools.backup"], ["dump", "--out", "a b.dump"]),
        (["restore", "FILE=a b.dump"], ["tools.backup"], ["restore", "a b.dump"]),
        (["chain", "HEAD=7:ab"], ["--database", "libs.trading.audit"], ["verify", "--head", "7:ab"]),
        (["experiment", "KEY=policy"], ["--database", "libs.exposures"], ["policy"]),
        (
            ["experiment", "KEY=policy", "PHASE=file-1", "OUT=a b.html"],
            ["--database", "libs.exposures"],
            ["policy", "--phase", "file-1", "--out", "a b.html"],
        ),
        (["chain", "SINCE=2026-01-01"], ["--database", "libs.trading.audit"], ["export", "--since", "2026-01-01"]),
    ],
)
def test_what_is_said_reaches_the_command_as_it_was_said(
    here: Path, words: list[str], module: list[str], arguments: list[str]
) -> None:
    assert called(here, *words) == ["-m", "tools.with_env", *module, *arguments]


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["rollback"], "KEY"),
        (["promote", "KEY=policy"], "VERSION"),
        (["ramp", "KEY=policy", "VERSION=1.1.0"], "PERCENT"),
        (["experiment"], "KEY"),
        (["restore"], "FILE"),
        (["key", "SCOPES=read"], "NAME"),
        (["key", "NAME=x"], "SCOPES"),
    ],
)
def test_what_a_command_lacks_is_named_in_one_line(here: Path, words: list[str], missing: str) -> None:
    names = {"KEY", "VERSION", "PERCENT", "FILE", "NAME", "SCOPES"}
    env = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(["make", *words], cwd=here, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert f"{missing} is missing: make {words[0]} " in line
    assert f" {missing}=" in line


def test_an_audit_installs_nothing_into_the_environment_of_a_running_stack(here: Path) -> None:
    (here / "requirements").mkdir()
    (here / "requirements" / "audit.txt").touch()
    (here / ".venv-audit").mkdir()
    (here / ".venv-audit" / ".made").touch()
    assert called(here, "audit") == ["-m", "tools.supply_chain"]


def test_a_halt_is_not_cleaned_away(here: Path) -> None:
    state = here / "state"
    state.mkdir()
    (state / "halt").touch()
    refused = subprocess.run(["make", "clean", f"LOCAL_STATE={state}"], cwd=here, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "make rearm" in refused.stderr
    assert (state / "halt").exists()
    (state / "halt").unlink()
    subprocess.run(["make", "clean", f"LOCAL_STATE={state}"], cwd=here, check=True)
    assert not state.exists()


SHOW = "import json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))\n"


def with_env(here: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (here / "shown.py").write_text(SHOW)
    known = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{here}"}
    command = [sys.executable, "-m", "tools.with_env", *words]
    return subprocess.run(command, cwd=here, env=known | variables, capture_output=True, text=True)


def test_the_shells_variables_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BROKER=alpaca\nPAPER_PORT='8011'  # a comment\n")
    done = with_env(tmp_path, "shown", "--reason", "a b", BROKER="paper")
    arguments, variables = json.loads(done.stdout)
    assert arguments == ["--reason", "a b"]
    assert (variables["BROKER"], variables["PAPER_PORT"]) == ("paper", "8011")


def test_a_file_that_cannot_be_read_is_told_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"BROKER=\xff\xfe")
    done = with_env(tmp_path, "shown")
    assert ".env was not read" in done.stderr
    assert json.loads(done.stdout)[0] == []


def test_the_database_is_the_one_named_else_the_stacks_else_said_to_be_missing(tmp_path: Path) -> None:
    missing = with_env(tmp_path, "--database", "shown")
    assert missing.returncode != 0
    assert missing.stderr.startswith("nothing runs here (.local): start the stack with `make run`")
    state = tmp_path / "state"
    state.mkdir()
    (state / "database.url").write_text("postgresql://embedded\n")
    (tmp_path / ".env").write_text("LOCAL_STATE=state\n")
    found = json.loads(with_env(tmp_path, "--database", "shown").stdout)[1]
    assert found["DATABASE_URL"] == "postgresql://embedded"
    named = json.loads(with_env(tmp_path, "--database", "shown", DATABASE_URL="postgresql://named").stdout)[1]
    assert named["DATABASE_URL"] == "postgresql://named"
    wanted = json.loads(with_env(tmp_path, "--database-if-there", "shown").stdout)[1]
    assert wanted["DATABASE_URL"] == "postgresql://embedded"
    (state / "database.url").unlink()
    assert json.loads(with_env(tmp_path, "--database-if-there", "shown", "x").stdout)[0] == ["x"]
    unneeded = json.loads(with_env(tmp_path, "shown").stdout)[1]
    assert "DATABASE_URL" not in unneeded


@pytest.fixture
def sockets() -> Generator[Path]:
    """A folder with a short name: a socket's path has at most 107 characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_stack_that_has_ended_is_told_from_one_that_runs(tmp_path: Path, sockets: Path) -> None:
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local" / "database.url").write_text(f"postgresql://postgres@/lexi?host={sockets}\n")

    def not_there() -> None:
        told = with_env(tmp_path, "--database", "shown")
        assert (told.returncode, told.stderr.splitlines()) == (1, [not_running(Path(".local"))])
        assert "DATABASE_URL" not in json.loads(with_env(tmp_path, "--database-if-there", "shown").stdout)[1]

    not_there()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(sockets / SOCKET))
        server.listen()
        found = json.loads(with_env(tmp_path, "--database", "shown").stdout)[1]
        assert found["DATABASE_URL"] == f"postgresql://postgres@/lexi?host={sockets}"
    not_there()  # as after a kill -9: the file is left behind, and nobody listens
    held = claim(tmp_path / ".local")
    told = with_env(tmp_path, "--database", "shown").stderr
    assert held is not None
    assert told == "the stack of .local runs, and its Postgres does not answer: see .local/logs/postgres.log\n"
