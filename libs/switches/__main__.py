"""`python -m libs.switches gate-off | gate-on | shadow-on | shadow-off | show`: turn a switch by hand.

Turning one away from its default (`CAUTIOUS`) needs a reason: it is asked for at a terminal, and refused without one.
The way back never waits for words.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from libs import telemetry
from libs.command_line import Parser, asked_at_the_terminal
from libs.db.opening import open_database
from libs.process import explain
from libs.switches.reading import CAUTIOUS, Standing, Switch, standing
from libs.switches.turning import LONGEST_MINUTES, USUAL_MINUTES, SwitchError, turn
from libs.telemetry import mask_text

COMMANDS: dict[str, tuple[Switch, bool]] = {
    "gate-off": ("ORDER_GATE_DISABLED", True),
    "gate-on": ("ORDER_GATE_DISABLED", False),
    "shadow-on": ("LLM_SHADOW_MODE", True),
    "shadow-off": ("LLM_SHADOW_MODE", False),
}
BY_HAND = "turned by hand, no reason given"
INTERRUPTED = 130
HELPS = {
    "gate-off": "the policy counts as allow for a while; limits, duplicates and the halt still hold",
    "gate-on": "the policy counts again",
    "shadow-on": "verdicts of the policy are only logged",
    "shadow-off": "verdicts of the policy act",
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m libs.switches", description="Turn a switch, or show them.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("show", help="where the switches stand, and who set them so")
    for name, words in HELPS.items():
        command = commands.add_parser(name, help=words)
        command.add_argument("--operator", default=os.environ.get("USER", ""), help="who does this (default: USER)")
        needed = "needed; asked for at a terminal" if needs_reason(name) else "may be left out"
        command.add_argument("--reason", default="", help=f"why; kept with the change; {needed}")
        if name == "gate-off":
            limits = f"{USUAL_MINUTES} where left out, at most {LONGEST_MINUTES}"
            command.add_argument("--minutes", type=_minutes, help=f"how long; {limits}")
    return parser


def _minutes(words: str) -> int:
    try:
        return int(words)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{words!r} is no whole number of minutes") from error


def needs_reason(command: str) -> bool:
    """Whether a command turns a switch away from where it stands by default."""
    name, value = COMMANDS[command]
    return CAUTIOUS[name] != value


def _reason(options: argparse.Namespace) -> str:
    """Why a switch is turned: as given, as answered at the terminal, or as nobody has to say. Raises `SwitchError`."""
    command: str = options.command
    given: str = options.reason.strip()
    if not options.operator.strip():
        raise SwitchError("nothing was turned: say who, with OPERATOR=NAME (without make: --operator NAME)")
    if given or not needs_reason(command):
        return given or BY_HAND
    answered = asked_at_the_terminal(f"{HELPS[command]}. Why? (kept with the change) ")
    if not answered:
        raise SwitchError(f'nothing was turned: say why, with make {command} REASON="…" (without make: --reason "…")')
    return answered


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
        if options.command != "show":
            options.reason = _reason(options)
        stands = asyncio.run(_run(options))
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return INTERRUPTED
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.stderr.write(f"{mask_text(line)}\n")
        return 2
    sys.stdout.write("".join(f"{_line(stand)}\n" for stand in stands))
    return 0


if __name__ == "__main__":
    telemetry.configure("switches", level="ERROR")
    sys.exit(main(sys.argv[1:]))
