"""`python -m libs.trading.audit verify | export`: check the chain of verdicts, or hand it out as CSV."""

import argparse
import asyncio
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from libs.command_line import Parser
from libs.db.opening import open_database
from libs.process import explain
from libs.telemetry import mask_text
from libs.trading.audit.export import Period, check_file, export
from libs.trading.audit.links import Link
from libs.trading.audit.verification import Verified, still_there, verify

BROKEN, UNUSABLE = 1, 2
END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)


def moment(words: str) -> datetime:
    """An ISO 8601 moment; without a zone it is UTC."""
    try:
        read = datetime.fromisoformat(words)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{words!r} is no moment like 2026-01-31 or 2026-01-31T12:00:00Z") from error
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read


def place(words: str) -> Link:
    """A place of the chain, `SEQ:HASH`, as the log and the exports name it."""
    seq, _, digest = words.replace(" ", ":").partition(":")
    if not seq.isdecimal() or not digest:
        raise argparse.ArgumentTypeError(f"{words!r} is no place of the chain like 120:9f86d0…")
    return Link(int(seq), digest)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(prog="python -m libs.trading.audit", description="Proof of what the gate said.")
    commands = made.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("verify", help="check every row; 1 and its number at the first broken one")
    checking.add_argument("--head", type=place, help="SEQ:HASH as logged: it must still stand in the chain")
    checking.add_argument("--file", type=Path, help="check an export instead of the database")
    giving = commands.add_parser("export", help="CSV with previous hash, hash and payload of each row")
    giving.add_argument("--since", type=moment, required=True, help="ISO 8601; UTC where it names no zone")
    giving.add_argument("--until", type=moment, default=END_OF_TIME, help="before this moment (default: all)")
    giving.add_argument("--out", type=Path, help="the file to write (default: stdout)")
    return made


async def run_verify(head: Link | None) -> Verified:
    """Check the database's chain, and that a noted head is still part of it."""
    async with open_database(application="audit") as engine:
        broken = None if head is None else await still_there(engine, head)
        found = await verify(engine)
        return found if found.broken is not None else Verified(found.rows, found.head, broken)


async def run_export(period: Period, out: TextIO) -> Verified:
    """Write the verdicts of a period."""
    async with open_database(application="audit") as engine:
        return await export(engine, period, out)


@contextmanager
def opened(path: Path | None) -> Generator[TextIO, None, None]:
    """The file to write, or stdout."""
    if path is None:
        yield sys.stdout
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file


def perform(options: argparse.Namespace) -> Verified:
    """Do what was asked."""
    if options.command == "export":
        with opened(options.out) as out:
            return asyncio.run(run_export(Period(options.since, options.until), out))
    if options.file is not None:
        return check_file(options.file)
    return asyncio.run(run_verify(options.head))


def main(arguments: Sequence[str]) -> int:
    """0 when the chain holds, 1 when it is broken, 2 when it could not be read; the words go to stderr."""
    options = parser().parse_args(arguments)
    try:
        found = perform(options)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.stderr.write(f"{mask_text(line)}\n")
        return UNUSABLE
    if found.broken is not None:
        sys.stderr.write(f"{found.broken}; {found.rows} rows before it hold\n")
        return BROKEN
    sys.stderr.write(f"{found.rows} rows hold; the last is {found.head.seq}:{found.head.hash}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
