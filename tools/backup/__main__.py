"""`python -m tools.backup dump [--out FILE] | restore FILE`: what `make backup` and `make restore` run."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from libs.process import explain
from libs.telemetry import mask_text
from tools.backup.dumping import STDOUT, dump, new_name
from tools.backup.embedded import database_to_fill
from tools.backup.restoring import restore

FAILED, INTERRUPTED = 1, 130


def state_folder() -> Path:
    """Where the state of the stack here is."""
    return Path(os.environ.get("LOCAL_STATE") or ".local")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tools.backup", description="The database in one file, and back.")
    commands = made.add_subparsers(dest="command", required=True)
    giving = commands.add_parser("dump", help="write a backup; everything goes on meanwhile")
    giving.add_argument("--out", type=Path, help="the file, - for stdout (default: a new one in LOCAL_STATE/backups)")
    taking = commands.add_parser("restore", help="fill an empty database from a backup, and verify it")
    taking.add_argument("file", type=Path, help="the file, - for stdin")
    return made


async def perform(options: argparse.Namespace) -> str:
    """Do what was asked; what to tell about it."""
    if options.command == "restore":
        return f"restored: {(await restore(options.file)).line()}; the chain of verdicts holds"
    out = options.out or new_name(state_folder() / "backups")
    held = await dump(out)
    return f"{'backup' if out == STDOUT else out}: {held.line()}"


def main(arguments: Sequence[str]) -> int:
    """0 when it was done; the words go to stderr, so that stdout is free for the backup."""
    options = parser().parse_args(arguments)
    place = database_to_fill(state_folder()) if options.command == "restore" else nullcontext()
    try:
        with place:
            told = asyncio.run(perform(options))
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return INTERRUPTED
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.stderr.write(f"{mask_text(line)}\n")
        return FAILED
    sys.stderr.write(f"{told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
