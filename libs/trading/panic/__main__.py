"""`python -m libs.trading.panic`: halt, cancel all, close all, verify. The answer is one line of JSON on stdout.

Only the standard library is loaded before the halt stands.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from libs.trading.broker.address import broker_address
from libs.trading.panic.ground import Voice
from libs.trading.panic.opening import Place, follow
from libs.trading.panic.report import EXIT_CODES, Whose, whose

USAGE = 2
MAX_TTL_MINUTES = 525_600


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a panic exit to its end; returns the process's exit code."""
    options = _options(arguments)
    for number in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # a closed terminal or a dead reader does not end an exit
    voice = Voice()
    try:
        answer = _dry(options) if options.dry_run else _exit(options, voice)
    except KeyboardInterrupt:
        voice.say("interrupted; entries stay stopped; go on with --resume")
        voice.flush()
        return 128 + signal.SIGINT
    except Exception:  # noqa: BLE001 - a mistake in here must still end in an exit code that says so
        import traceback  # takes long to load, and is needed only here

        voice.say(f"the panic exit failed; entries stay stopped; go on with --resume\n{traceback.format_exc()}")
        voice.flush()
        return EXIT_CODES["FAILED"]
    if answer is None:
        voice.flush()
        return USAGE
    return EXIT_CODES.get(str(answer["state"]), EXIT_CODES["FAILED"])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m libs.trading.panic",
        description="Stop entries, cancel every order, close every position, and say what is true.",
        epilog="exit codes: 0 flat, 3 closing orders wait for the market, 4 partial, 5 failed, 2 bad usage",
    )
    parser.add_argument("--reason", default="panic_exit", help="why, in a few words")
    parser.add_argument(
        "--ttl-minutes", type=_minutes, default=60, help="earliest re-arm, in minutes from now (default 60)"
    )
    parser.add_argument("--exit-id", type=UUID, default=None, help="this exit's id, where another process chose it")
    parser.add_argument("--dry-run", action="store_true", help="only read, and list what would be done")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted exit, if there is one")
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(os.environ.get("LOCAL_STATE") or ".local"),
        help="folder of the halt file and the journal (default LOCAL_STATE, or .local)",
    )
    return parser.parse_args(arguments)


def _minutes(value: str) -> int:
    if not value.isdecimal() or int(value) > MAX_TTL_MINUTES:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of minutes from 0 to {MAX_TTL_MINUTES}")
    return int(value)


def _exit(options: argparse.Namespace, voice: Voice) -> dict[str, Any] | None:
    place, asks = Place(options.state, _broker()), not options.resume
    mine = place.take_lock()
    interrupted = place.unfinished() if options.resume and mine else None
    if options.resume and mine and interrupted is None:
        return _nothing_to_resume(place, voice)
    exit_id: UUID = options.exit_id or uuid4()
    place.sign(interrupted or exit_id)
    place.halt(interrupted or exit_id, options.reason, ttl_minutes=options.ttl_minutes)
    voice.say(f"{place.troubles.get('halt') or f'entries are stopped: {place.halt_file.path}'}; {_named(place)}")
    if not mine:
        answer = follow(place, exit_id, asks=asks, say=voice.say)
        if answer is not None:
            return _told(answer, voice)
        place.sign(exit_id)
    interrupted = interrupted or place.unfinished(besides=exit_id)
    if interrupted is None and options.resume:
        return _nothing_to_resume(place, voice)
    if interrupted is not None:
        voice.say(f"going on with the interrupted exit {interrupted}")
        place.note_joined(exit_id, interrupted, asks=asks)
        place.sign(interrupted)
    place.begin(interrupted or exit_id)
    left = place.note_elsewhere()
    if left is not None:
        voice.say(left)
    from libs.trading.panic.process import run_exit  # loads httpx, which takes longer than the halt

    return run_exit(place, interrupted or exit_id, asks=asks, voice=voice, tell=_print)


def _broker() -> Whose | None:
    """Which broker the environment names; what is wrong with it is told where it is needed."""
    try:
        return whose(broker_address(os.environ))
    except Exception:  # noqa: BLE001 - nothing in an environment may come before the halt
        return None


def _named(place: Place) -> str:
    return "the environment names no broker" if place.broker is None else str(place.broker)


def _nothing_to_resume(place: Place, voice: Voice) -> None:
    trouble = place.troubles.get("journal") or place.note_elsewhere()
    voice.say(trouble or "there is no unfinished panic exit to resume")
    place.let_go()


def _dry(options: argparse.Namespace) -> dict[str, Any]:
    from libs.trading.panic.process import run_dry

    answer = run_dry(options.exit_id or uuid4(), reason=options.reason, ttl_minutes=options.ttl_minutes)
    _print(answer)
    return answer


def _told(answer: dict[str, Any], voice: Voice) -> dict[str, Any]:
    _print(answer)
    voice.say(f"{answer['state']}: {answer['positions_closed']} closed, {answer['orders_cancelled']} cancelled")
    voice.flush()
    return answer


def _print(answer: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        return  # nobody reads any more: the answer stands in the journal, and the exit code says it too


if __name__ == "__main__":
    # Not by the interpreter's own end: it would wait for a pipe that nobody reads and for a disk that hangs.
    os._exit(main())
