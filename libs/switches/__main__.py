"""`python -m libs.switches gate-off | gate-on | shadow-on | shadow-off | show`: turn a switch by hand."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from libs import telemetry
from libs.db.opening import open_database
from libs.process import explain
from libs.switches.reading import Standing, Switch, standing
from libs.switches.turning import LONGEST_MINUTES, USUAL_MINUTES, SwitchError, turn
from libs.telemetry import mask_text

COMMANDS: dict[str, tuple[Switch, bool]] = {
    "gate-off": ("ORDER_GATE_DISABLED", True),
    "gate-on": ("ORDER_GATE_DISABLED", False),
    "shadow-on": ("LLM_SHADOW_MODE", True),
    "shadow-off": ("LLM_SHADOW_MODE", False),
}
BY_HAND = "turned by hand, no reason given"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m libs.switches", description="Turn a switch, or show them.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("show", help="where the switches stand, and who set them so")
    helps = {
        "gate-off": "the policy counts as allow for a while; limits, duplicates and the halt still hold",
        "gate-on": "the policy counts again",
        "shadow-on": "verdicts of the policy are only logged",
        "shadow-off": "verdicts of the policy act",
    }
    for name, words in helps.items():
        command = commands.add_parser(name, help=words)
        command.add_argument("--operator", default=os.environ.get("USER", ""), help="who does this (default: USER)")
        off = name == "gate-off"
        command.add_argument("--reason", required=off, default=BY_HAND, help="why; kept with the change")
        if off:
            limits = f"{USUAL_MINUTES} where left out, at most {LONGEST_MINUTES}"
            command.add_argument("--minutes", type=int, help=f"how long; {limits}")
    return parser


def _line(stand: Standing) -> str:
    until = f", until {stand.expires_at:%Y-%m-%d %H:%M:%S} UTC" if stand.expires_at else ""
    since = f" since {stand.set_at:%Y-%m-%d %H:%M:%S} UTC" if stand.set_at else ""
    return f"{stand.name}={str(stand.value).lower()}{until} ({stand.set_by}{since}: {stand.reason})"


async def _run(options: argparse.Namespace) -> list[Standing]:
    async with open_database(application="switches", pool_size=1) as engine, engine.begin() as connection:
        if options.command != "show":
            name, value = COMMANDS[options.command]
            minutes: int | None = getattr(options, "minutes", None)
            await turn(connection, name, value, operator=options.operator, reason=options.reason, minutes=minutes)
        return await standing(connection)


def main(arguments: Sequence[str]) -> int:
    """Run one command and print where the switches stand. 2 with one line on stderr where it cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        stands = asyncio.run(_run(options))
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        hint = "; name yourself with --operator" if isinstance(error, SwitchError) and not options.operator else ""
        sys.stderr.write(f"{mask_text(line)}{hint}\n")
        return 2
    sys.stdout.write("".join(f"{_line(stand)}\n" for stand in stands))
    return 0


if __name__ == "__main__":
    telemetry.configure("switches", level="ERROR")
    sys.exit(main(sys.argv[1:]))
