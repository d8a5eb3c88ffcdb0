"""The words of the prompts' tool."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from libs.llm.commands.adopt import adopt
from libs.llm.commands.difference import diff
from libs.llm.commands.plans import STEPS
from libs.llm.commands.releasing import release
from libs.llm.commands.showing import check, lint, render
from libs.llm.commands.turning import listing, promote, ramp_up, roll_back, show_history
from libs.process import explain
from libs.telemetry import mask_text

DEFAULT_FILE = "configs/llm_prompts.yaml"

Run = Callable[[argparse.Namespace], Sequence[str]]


def main(arguments: Sequence[str]) -> int:
    """Run one command. 0 when all is well, 1 with one line per fault on stderr."""
    options = _parser().parse_args(arguments)
    try:
        lines: Sequence[str] = options.run(options)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.stderr.write(f"{mask_text(line)}\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m libs.llm.registry", description="The life of a prompt version; docs/prompts.md tells it."
    )
    parser.add_argument("--file", type=Path, default=Path(os.environ.get("PROMPTS_FILE") or DEFAULT_FILE))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Run, words: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=words, description=words)
        one.set_defaults(run=run)
        return one

    _add_readers(command)
    _add_writers(command)
    return parser


def _add_readers(command: Callable[[str, Run, str], argparse.ArgumentParser]) -> None:
    command("check", check, "fail unless every version is released and none was edited")
    one = command("lint", lint, "check what a version allows and probably does not mean")
    one.add_argument("key", nargs="?")
    one.add_argument("version", nargs="?")
    one.add_argument("--all", action="store_true", help="released versions too")
    command("list", listing, "every version, what is in force and by whose word; * marks the version in force")
    one = command("render", render, "the messages of a version for inputs from a JSON file (- for stdin)")
    _name(one, "key", "version", "inputs")
    one = command(
        "diff", diff, "what differs between two versions: text, schemas, sampling, and what the model is sent"
    )
    _name(one, "key", "old", "new")
    samples = one.add_mutually_exclusive_group()
    samples.add_argument("--inputs", metavar="FILE", help="render both with the variables of a JSON file (- for stdin)")
    samples.add_argument(
        "--stored", type=_count(0), metavar="N", help="render both with the variables of the latest N calls"
    )
    one = command("history", show_history, "every promotion, ramp and rollback of a key, newest first")
    _name(one, "key")
    one.add_argument("--limit", type=_count(1), default=50, help="at most so many (default: 50)")


def _add_writers(command: Callable[[str, Run, str], argparse.ArgumentParser]) -> None:
    one = command("release", release, "add a version's hash to the lock; it never changes after that")
    one.add_argument("key", nargs="?")
    one.add_argument("version", nargs="?")
    one.add_argument("--all", action="store_true", help="every draft at once")
    one = command("promote", promote, "give every unit a version; any experiment ends")
    _name(one, "key", "version")
    _ask_who(one, "why; needed where no replay of the version has finished or no evaluation of it has passed")
    one = command("ramp", ramp_up, "give some of the units a version, the rest stays with the one in force")
    _name(one, "key", "version")
    one.add_argument("percent", type=int, choices=STEPS, help="share of the units, in per cent")
    _ask_who(one, "why; needed where no replay of the version has finished")
    one = command("rollback", roll_back, "end a running experiment, else go back to before the last promotion")
    _name(one, "key")
    _ask_who(one, "why; needed only where the latest activation was made on another ground")
    one.add_argument(
        "--further", action="store_true", help="one more step back where the last change went back already"
    )
    one = command("adopt", adopt, "write what is in force into the YAML, for a commit")
    one.add_argument("key", nargs="?", help="only this one")
    _ask_operator(one)


def _name(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(name)


def _ask_who(parser: argparse.ArgumentParser, why: str) -> None:
    _ask_operator(parser)
    parser.add_argument("--reason", type=str.strip, default="", help=why)


def _ask_operator(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--operator", default=os.environ.get("USER", ""), help="who does this (default: USER)")


def _count(least: int) -> Callable[[str], int]:
    def number(word: str) -> int:
        count = int(word)
        if count < least:
            raise argparse.ArgumentTypeError(f"{count} is below {least}")
        return count

    return number
