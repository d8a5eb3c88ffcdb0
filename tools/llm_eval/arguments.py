"""The words of `run_eval.py`, and what they mean where they are left out."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from libs.evaluation.figures.thresholds import Threshold, ThresholdError, parse_threshold
from libs.evaluation.running.folder import NAME
from tools.llm_eval import extract

COMMANDS = ("run", "resume", "cancel", "report", "compare", "extract", "history")
BUNDLED = "bundled"
RESULTS = Path("results")
PROMPTS = ("rationale", "policy")
CODES = (
    "Exit codes: 0 passed, or no threshold asked; 3 a threshold missed; 2 bad usage; 1 the harness failed; 130 Ctrl-C."
)


class Options(Protocol):
    """A parser, or a group of one's options."""

    def add_argument(self, *names: str, default: object = ..., help: str = ...) -> object:  # noqa: A002 - argparse's
        """Add one."""
        ...


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What was asked for; `run` where no command is named. Ends the process with 2 where it makes no sense."""
    first = words[0] if words else ""
    named = first in COMMANDS or first in {"-h", "--help"}
    return _parser().parse_args(words if named else ["run", *words])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_eval.py",
        description="Judge prompt versions offline, on the production path. Without a command it runs an evaluation.",
        epilog=f"{CODES} docs/evaluation.md tells the rest.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="ask every case and report", epilog=CODES))
    one = commands.add_parser("resume", help="go on with a run that was broken off")
    one.add_argument("folder", type=Path, metavar="FOLDER")
    one.add_argument("--retry-errors", action="store_true", help="ask again also what got no answer")
    one.add_argument("--parquet", action="store_true", help="write rows.parquet too")
    _add_operator(one)
    one = commands.add_parser("cancel", help="take a run back from the workers")
    one.add_argument("folder", type=Path, metavar="FOLDER")
    _add_operator(one)
    one = commands.add_parser("report", help="make figures and report of a run anew from its rows")
    one.add_argument("folder", type=Path, metavar="FOLDER")
    one.add_argument(
        "--fail-under", type=thresholds, action="extend", metavar="SPEC", help="other ones; writes nothing"
    )
    one.add_argument("--parquet", action="store_true", help="write rows.parquet too")
    _add_operator(one)
    one = commands.add_parser("compare", help="two runs over the cases that both have")
    one.add_argument("first", type=Path, metavar="A")
    one.add_argument("second", type=Path, metavar="B")
    extract.add_arguments(commands.add_parser("extract", help="make a data set"))
    one = commands.add_parser("history", help="the evaluations on record, newest first")
    one.add_argument("--limit", type=count(1), default=20, help="at most so many (default: 20)")
    return parser


def _add_run(one: argparse.ArgumentParser) -> None:
    what = one.add_argument_group("what is asked")
    what.add_argument("--dataset", default=BUNDLED, metavar="FILE", help="JSONL or Parquet; default: bundled bars")
    what.add_argument(
        "--prompt", type=several, action="extend", metavar="KEY", help="default: rationale and policy; may be repeated"
    )
    what.add_argument(
        "--version",
        type=several,
        action="extend",
        metavar="V",
        help="1.1.0, or policy@1.1.0 for one prompt alone; may be repeated; default: what is in force",
    )
    what.add_argument(
        "--limit",
        type=count(1),
        help="at most so many cases, drawn by seed; default: all of a file, of the bundled 60 on the embedded model "
        "and 1000 on any other",
    )
    what.add_argument("--repeat", type=count(1), default=1, help="ask each so often (default: 1)")
    what.add_argument("--seed", type=count(0), default=1, help="of sample, order, twins and arrivals (default: 1)")
    what.add_argument(
        "--masked",
        action=argparse.BooleanOptionalAction,
        help="ask each case a second time under an invented ticker and date; default: not on the embedded model",
    )
    what.add_argument(
        "--injection",
        type=pairs,
        metavar="N|off",
        help="so many hostile twins (default: 60, 12 on the embedded model); only where policy is asked",
    )
    _add_manner(one)
    _add_outcome(one)


def _add_manner(one: argparse.ArgumentParser) -> None:
    how = one.add_argument_group("how")
    how.add_argument("--concurrency", type=count(1), metavar="N", help="at most so many at once (default: the share)")
    how.add_argument(
        "--rate", type=positive, metavar="R", help="open loop: R questions a second, whatever the model does"
    )
    how.add_argument("--workers", type=count(0), default=0, metavar="N", help="hand the cases to N services.jobs")
    how.add_argument("--cache", choices=("on", "off"), default="off", help="may kept replies answer? (default: off)")


def _add_outcome(one: argparse.ArgumentParser) -> None:
    out = one.add_argument_group("what comes of it")
    out.add_argument(
        "--fail-under",
        type=thresholds,
        action="extend",
        metavar="SPEC",
        help="validity=0.98, flips=0, policy@1.1.0:caught=0.9; may be repeated; the end is then 3 where one is missed",
    )
    out.add_argument("--name", type=name, help="of the run (default: the prompts and versions)")
    out.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: results")
    out.add_argument("--parquet", action="store_true", help="write rows.parquet too")
    out.add_argument("--price-in", type=positive, metavar="USD", help="of a million prompt tokens")
    out.add_argument("--price-out", type=positive, metavar="USD", help="of a million answered tokens")
    out.add_argument("--price-hour", type=positive, metavar="USD", help="of the model's machine for an hour")
    _add_operator(out)


def _add_operator(one: Options) -> None:
    one.add_argument("--operator", default=os.environ.get("USER", ""), help="who asks (default: USER)")


def several(words: str) -> list[str]:
    """A list as people write it on one line: commas or blanks between."""
    return [word for word in re.split(r"[,\s]+", words) if word]


def thresholds(words: str) -> list[Threshold]:
    """The thresholds of one `--fail-under`. Raises `argparse.ArgumentTypeError`."""
    try:
        return [parse_threshold(word) for word in several(words)]
    except ThresholdError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def name(word: str) -> str:
    """The name of a run, which becomes part of a folder's. Raises `argparse.ArgumentTypeError`."""
    if not NAME.fullmatch(word):
        raise argparse.ArgumentTypeError(f"{word!r}: letters, digits and . _ - only, at most 60")
    return word


def pairs(word: str) -> int:
    """How many hostile twins; `off` is none. Raises `argparse.ArgumentTypeError`."""
    return 0 if word == "off" else count(0)(word)


def positive(word: str) -> float:
    """A finite number above zero. Raises `argparse.ArgumentTypeError`."""
    try:
        number = float(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} is no number") from error
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{word} is not above zero")
    return number


class count:  # noqa: N801 - reads as a function where it is used
    """A whole number of at least `least`, for argparse."""

    def __init__(self, least: int) -> None:
        self._least = least

    def __call__(self, word: str) -> int:
        """Read one. Raises `argparse.ArgumentTypeError`."""
        try:
            number = int(word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{word!r} is no whole number") from error
        if number < self._least:
            raise argparse.ArgumentTypeError(f"{word} is below {self._least}")
        return number
