"""`python -m libs.trading.drill`: a panic exit on the paper broker, with how long each of its steps took.

It is the real process with the reason `drill`: it halts, and it closes and cancels everything there. Its halt may be
re-armed at once. It refuses any other broker than paper.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from libs.trading.broker.address import PAPER, broker_address
from libs.trading.broker.errors import BrokerConfigError
from libs.trading.journal import Entry, Journal
from libs.trading.panic.report import JOURNAL_NAME, entries_of

USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a drill; returns the exit code of its panic exit, 2 where there may be none."""
    parser = argparse.ArgumentParser(prog="python -m libs.trading.drill", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(os.environ.get("LOCAL_STATE") or ".local"))
    state: Path = parser.parse_args(arguments).state
    try:
        broker = broker_address(os.environ).name
    except BrokerConfigError as error:
        return _refused(str(error))
    if broker != PAPER:
        return _refused(f"BROKER={broker}: a drill closes everything, so it only runs with BROKER=paper")
    command = [sys.executable, "-m", "libs.trading.panic", "--reason", "drill", "--ttl-minutes", "0"]
    exited = subprocess.run([*command, "--state", str(state)], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if not exited.stdout:
        return exited.returncode
    answer = json.loads(exited.stdout)
    journal = Journal(state / JOURNAL_NAME)
    _print(exited.stdout.rstrip("\n"))
    for line in durations(entries_of(journal, UUID(answer["exit_id"]))):
        _print(line)
    _print("Entries are halted; re-arm with `make rearm`.")
    return exited.returncode


def durations(entries: Sequence[Entry]) -> list[str]:
    """Each step with the seconds from the begin and the seconds it took until the next one."""
    lines: list[str] = []
    for entry, following in pairwise(entries):
        if entry.action == "ended":
            break
        since = (entry.at - entries[0].at).total_seconds()
        took = (following.at - entry.at).total_seconds()
        lines.append(f"{since:8.3f} s  {entry.action:<20} {took:7.3f} s")
    if entries:
        last = next(entry for entry in reversed(entries) if entry.action != "alerted")
        lines.append(f"{(last.at - entries[0].at).total_seconds():8.3f} s  from the first entry to the answer")
    return lines


def _refused(why: str) -> int:
    sys.stderr.write(f"{why}\n")
    return USAGE


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
