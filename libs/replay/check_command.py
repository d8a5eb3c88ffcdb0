"""Exact replay from the command line: which cases, by which prompts and rules, and how it went."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from libs.db.opening import open_database
from libs.judgement.rules import RULES_FILE, Rules
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.replay.batch.command import moment as said_moment
from libs.replay.batch.rows import BatchRefused
from libs.replay.cases import read_cases, stored_cases
from libs.replay.check import Checked, Checker, check_all
from libs.settings import load

GATHERING_S = 300.0
"""How long it may take to find out which forecasts of a period are to be checked, in seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a check is told: files of cases, or a period of stored forecasts."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="files of recorded cases, one per line")
    parser.add_argument("--since", type=moment, help="forecasts written from then on: yesterday, 24h, 2026-01-31 (UTC)")
    parser.add_argument("--until", type=moment, help="and before then; now where left out")
    parser.add_argument("--prompts", type=Path, help="file of the prompts; PROMPTS_FILE where left out")
    parser.add_argument("--rules", type=Path, default=RULES_FILE, help="file of the rules")


def moment(word: str) -> datetime:
    """A moment as `make replay` takes it: yesterday, 24h, 2026-01-31 (UTC). Raises `argparse.ArgumentTypeError`."""
    try:
        return said_moment(word, now=datetime.now(UTC))
    except BatchRefused as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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
        async with open_database(application="replay-check", pool_size=1, command_timeout=GATHERING_S) as engine:
            await check_all(checker, stored_cases(engine, since=options.since, until=until), into=checked)
    return checked
