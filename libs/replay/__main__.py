"""`python -m libs.replay check [FILE …] [--since DAY] [--until DAY]`: recorded answers through today's pipeline.

0 when every decision comes out as stored, 1 with the first difference, 2 where it cannot be done, or nothing was there
to check.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from libs import telemetry
from libs.process import explain
from libs.replay.check_command import add_arguments, run_check
from libs.telemetry import mask_text


def main(arguments: Sequence[str]) -> int:
    """Run the command, and print how it went."""
    parser = argparse.ArgumentParser(prog="python -m libs.replay", description="Replay what was recorded.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="recorded answers must lead to the stored decisions")
    add_arguments(check)
    options = parser.parse_args(arguments)
    if not options.files and options.since is None:
        check.error("give files of cases, or --since for the stored forecasts")
    try:
        checked = asyncio.run(run_check(options))
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.stderr.write(f"{mask_text(line)}\n")
        return 2
    sys.stdout.write(f"{checked}\n")
    if checked.first is not None:
        return 1
    if checked.nothing is not None:
        sys.stderr.write(f"{checked.nothing}\n")
        return 2
    return 0


if __name__ == "__main__":
    telemetry.configure("replay", level="ERROR")
    sys.exit(main(sys.argv[1:]))
