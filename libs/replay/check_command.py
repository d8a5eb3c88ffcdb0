"""Exact replay from the command line: which cases, by which prompts and rules, and how it went."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from libs.db.opening import open_database
from libs.judgement.rules import RULES_FILE, Rules
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.replay.cases import read_cases, stored_cases
from libs.replay.check import Checked, Checker, check_all
from libs.settings import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a check is told: files of cases, or a period of stored forecasts."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="files of recorded cases, one per line")
    parser.add_argument("--since", type=moment, help="check the forecasts written from this day or moment on (UTC)")
    parser.add_argument("--until", type=moment, help="and before this one; now where left out")
    parser.add_argument("--prompts", type=Path, help="file of the prompts; PROMPTS_FILE where left out")
    parser.add_argument("--rules", type=Path, default=RULES_FILE, help="file of the rules")


def moment(word: str) -> datetime:
    """An ISO day or moment; in UTC where it names no zone. Raises `argparse.ArgumentTypeError`."""
    try:
        found = datetime.fromisoformat(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} is no day or moment such as 2026-01-31") from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


async def run_check(options: argparse.Namespace) -> Checked:
    """Check what was asked for. Raises `PromptFileError`, `RulesError`, `CaseFileError`, `DatabaseError`, `OSError`."""
    settings = load(LLMSettings)
    path = options.prompts if options.prompts is not None else settings.prompts_file
    # Without the lock: a version that was edited in place is to be found out by its first difference, not refused.
    checker = Checker(Registry.load_unlocked(path), Rules.load(options.rules), settings)
    checked = Checked()
    for file in options.files:
        await check_all(checker, read_cases(file), into=checked)
    if options.since is not None:
        until = options.until if options.until is not None else datetime.now(UTC)
        async with open_database(application="replay-check", pool_size=1) as engine:
            await check_all(checker, stored_cases(engine, since=options.since, until=until), into=checked)
    return checked
