"""`run_eval.py` before it asks anything: its words, the versions it pins, what it shows, and what make hands it."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from libs.evaluation.cases.dataset import DatasetInfo
from libs.evaluation.running.row import Row
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from tests.unit.test_makefile import here as here  # a fixture: the Makefile beside a python that says its arguments
from tools.llm_eval.arguments import parse
from tools.llm_eval.pinning import pins, spoken
from tools.llm_eval.preparing import default_name, prices, wanted
from tools.llm_eval.progress import Progress
from tools.llm_eval.refusal import FAILED, USAGE, HarnessFailed, UsageRefused, code_of
from tools.llm_eval.stamp import ROOT, packages, stamp

FILE = DatasetInfo(Path("cases.jsonl"), "0" * 64, cases=9, twins=0, without_moments=0, stamp=(1, 1))
PROMPTS_FILE = ROOT / "configs" / "llm_prompts.yaml"


@pytest.fixture
def prompts() -> Prompts:
    return Prompts.build(Registry.load_quietly(PROMPTS_FILE))


def test_without_a_command_a_run_is_meant() -> None:
    plain, named = parse(["--prompt", "policy", "--limit", "5"]), parse(["run", "--prompt", "policy", "--limit", "5"])
    assert plain == named
    assert (plain.command, plain.dataset, plain.repeat, plain.cache) == ("run", "bundled", 1, "off")
    assert (parse([]).masked, parse([]).injection, parse(["--no-masked", "--injection", "off"]).masked) == (
        None,
        None,
        False,
    )
    assert parse(["--injection", "off"]).injection == 0


def test_lists_may_be_written_as_people_write_them() -> None:
    options = parse(["--prompt", "policy,rationale", "--version", "1.0.0 1.1.0", "--version", "1.2.0"])
    assert options.prompt == ["policy", "rationale"]
    assert options.version == ["1.0.0", "1.1.0", "1.2.0"]
    asked = parse(["--fail-under", "validity=0.95 flips=0", "--fail-under", "policy@1.1.0:caught=0.9,answered=0.5"])
    assert [str(one) for one in asked.fail_under] == [
        "validity=0.95",
        "flips=0",
        "policy@1.1.0:caught=0.9",
        "answered=0.5",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fail-under", "valid=0.9"], "there is no threshold 'valid'"),
        (["--fail-under", "validity"], "write NAME=NUMBER"),
        (["--limit", "0"], "0 is below 1"),
        (["--limit", "many"], "'many' is no whole number"),
        (["--rate", "-1"], "is not above zero"),
        (["--rate", "fast"], "'fast' is no number"),
        (["--injection", "some"], "'some' is no whole number"),
        (["--name", "a/b"], "letters, digits"),
        (["--cache", "maybe"], "invalid choice"),
        (["resume"], "FOLDER"),
        (["compare", "one"], "B"),
        (["nonsense"], "nonsense"),
    ],
)
def test_what_makes_no_sense_ends_with_2_and_says_why(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == USAGE
    assert said in capsys.readouterr().err


def test_versions_are_those_in_force_unless_they_are_named(prompts: Prompts) -> None:
    assert [str(pin) for pin in pins(prompts, (), ())] == ["rationale 1.0.0", "policy 1.0.0"]
    assert [str(pin) for pin in pins(prompts, ["policy"], ["1.1.0", "1.0.0", "1.1.0"])] == [
        "policy 1.1.0",
        "policy 1.0.0",
    ]
    assert [str(pin) for pin in pins(prompts, (), ["policy@1.1.0"])] == ["rationale 1.0.0", "policy 1.1.0"]
    both = pins(prompts, ["policy", "rationale"], ["1.1.0", "policy@1.0.0"])
    assert [str(pin) for pin in both] == ["policy 1.1.0", "policy 1.0.0", "rationale 1.1.0"]
    assert both[0].hash == prompts.registry.version("policy", "1.1.0").sha256


def test_what_the_environment_gives_to_units_is_asked(prompts: Prompts) -> None:
    given = Prompts.build(prompts.registry, "policy:1.0.0@90,1.1.0@10;rationale:1.1.0")
    pinned = pins(given, (), ())
    assert [str(pin) for pin in pinned] == ["rationale 1.1.0", "policy 1.0.0", "policy 1.1.0"]
    assert spoken(given, pinned, ())[0] == f"rationale 1.1.0 ({pinned[0].hash[:12]}, in force by LLM_AB_BUCKETS)"
    assert spoken(given, pinned, ["1.1.0"])[0] == f"rationale 1.1.0 ({pinned[0].hash[:12]})"


@pytest.mark.parametrize(
    ("keys", "versions", "said"),
    [
        (["summary"], [], "only rationale and policy are asked about a signal"),
        (["policy"], ["9.9.9"], "policy has no version 9.9.9, only 1.0.0, 1.1.0"),
        (["policy"], ["rationale@1.0.0"], "rationale is not among the prompts: policy"),
    ],
)
def test_a_version_that_cannot_be_asked_is_named(
    prompts: Prompts, keys: list[str], versions: list[str], said: str
) -> None:
    with pytest.raises(UsageRefused, match=said) as refused:
        pins(prompts, keys, versions)
    assert code_of(refused.value) == USAGE


def test_a_failure_out_there_is_not_the_callers() -> None:
    assert code_of(HarnessFailed("the model is away")) == FAILED
    assert code_of(OSError(28, "No space left on device")) == FAILED


def test_how_much_is_asked_depends_on_the_model(prompts: Prompts) -> None:
    policy, rationale = pins(prompts, ["policy"], ()), pins(prompts, ["rationale"], ())
    slow = wanted(parse([]), policy, info=None, embedded=True)
    fast = wanted(parse([]), policy, info=None, embedded=False)
    assert (slow.limit, slow.masked, slow.hostile) == (60, False, 12)
    assert (fast.limit, fast.masked, fast.hostile) == (1_000, True, 60)
    assert wanted(parse([]), rationale, info=None, embedded=False).hostile == 0
    assert wanted(parse([]), policy, info=FILE, embedded=True).limit is None
    own = replace(FILE, twins=3)
    brought = wanted(parse([]), policy, info=own, embedded=False)
    assert (brought.masked, brought.hostile) == (False, 0)
    said = wanted(parse(["--limit", "7", "--masked", "--injection", "3"]), policy, info=FILE, embedded=True)
    assert (said.limit, said.masked, said.hostile) == (7, True, 3)


def test_a_run_is_named_after_what_it_asks(prompts: Prompts) -> None:
    assert default_name(pins(prompts, (), ())) == "rationale-1.0.0-policy-1.0.0"
    assert default_name(pins(prompts, ["policy"], ["1.0.0", "1.1.0"])) == "policy-1.0.0-1.1.0"


def test_prices_are_none_unless_one_is_named() -> None:
    assert prices(parse([])) is None
    named = prices(parse(["--price-out", "2.5"]))
    assert named is not None
    assert (named.in_per_mtok, named.out_per_mtok, named.per_hour) == (0.0, 2.5, 0.0)


def test_the_stamp_says_what_ran(prompts: Prompts, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("x\n", encoding="utf-8")
    pinned = pins(prompts, ["policy"], ())
    found = stamp(pinned=pinned, rules_file=rules, model={"name": "Lexi"})
    assert found["prompts"] == {"policy 1.0.0": pinned[0].hash}
    assert found["rules"]["sha256"] == "73cb3858a687a8494ca3323053016282f3dad39d42cf62ca4e79dda2aac7d9ac"
    assert found["model"] == {"name": "Lexi"}
    assert found["packages"]["jinja2"] == packages()["jinja2"]
    assert json.loads(json.dumps(found)) == found


ROW = Row(
    item=0, try_=1, case="A", twin="", twin_of="", attack="", ticker="A", day="2012-01-03", as_of="2012-01-03",
    prompt="policy", version="1.0.0", hash="0" * 64, repeat=0, status="ok", error=None, first_error=None, cached=False,
    text="{}", allow=True, reasons=(), flags=(), rules_allow=True, rules_reasons=(), ungrounded=None, side="buy",
    target=True, made=0.01, won=True, queue_ms=0.0, first_queue_ms=0.0, first_token_ms=1.0, total_ms=2.0, late_ms=0.0,
    tokens_in=1, tokens_out=1, model="Lexi", call_id="", at="2026-01-01T00:00:00Z", worker="here:1",
)  # fmt: skip


def test_progress_where_nobody_looks_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Progress(40, done=10, clock=lambda: now) as progress:
        for number in range(20):
            now += 0.5
            progress.seen(ROW if number % 4 else replace(ROW, status="invalid", allow=None))
        for error in ("refused: answered 500: in your prompt …", "refused: answered 500: again", "timeout: 5 s"):
            progress.seen(replace(ROW, status="unavailable", allow=None, error=error))
        progress.tell("waiting for the model: refused")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "20 of 40, 2.0/s, 70 % valid, 100 % allow, about 10 s left"
    assert lines[1].startswith("30 of 40, 2.0/s, ")
    assert lines[2:] == [
        "no answer: refused: answered 500",
        "no answer: timeout: 5 s",
        "waiting for the model: refused",
        "33 of 40, 2.0/s, 75 % valid, 100 % allow, 3 without an answer, about 4 s left",
    ]


def called(here: Path, *words: str) -> list[str]:
    """What python was called with by make, in a shell that says nothing else about an evaluation."""
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(["make", *words], cwd=here, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


BEGINS = ["-m", "tools.with_env", "--database-if-there", "tools.llm_eval.run_eval", "run"]


def test_make_hands_over_what_is_said(here: Path) -> None:
    assert called(here, "eval-llm", "OPERATOR=Ann B") == [*BEGINS, "--operator", "Ann B"]
    words = [
        "PROMPT=policy",
        "VERSION=1.0.0 1.1.0",
        "DATASET=my cases.jsonl",
        "LIMIT=10",
        "WORKERS=2",
        "NAME=night",
        "OPERATOR=ann",
    ]
    said = called(here, "eval-llm", *words, "FAIL_UNDER=validity=0.95 flips=0", "ARGS=--repeat 3 --no-masked")
    assert said == [
        *BEGINS, "--prompt", "policy", "--version", "1.0.0 1.1.0", "--dataset", "my cases.jsonl", "--limit", "10",
        "--fail-under", "validity=0.95 flips=0", "--workers", "2", "--name", "night", "--operator", "ann",
        "--repeat", "3", "--no-masked",
    ]  # fmt: skip
    assert isinstance(parse(said[4:]), argparse.Namespace)


@pytest.mark.parametrize("start", [["-m", "tools.llm_eval.run_eval"], ["tools/llm_eval/run_eval.py"]])
def test_both_ways_to_start_it_are_the_same(start: list[str]) -> None:
    done = subprocess.run([sys.executable, *start, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "run" in done.stdout
    assert "Exit codes: 0 passed" in done.stdout
