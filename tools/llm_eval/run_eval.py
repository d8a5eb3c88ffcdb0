"""`make eval-llm`: judge prompt versions offline, on the production path, and say whether they pass.

`python -m tools.llm_eval.run_eval` and `python tools/llm_eval/run_eval.py` are the same. As make does, they read `.env`
and find the database of the stack that runs here. `docs/evaluation.md` tells how to use it.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

if __name__ == "__main__" and __package__ is None:  # started as a file: the packages lie two folders up
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import uvloop

from libs import telemetry
from libs.process import explain
from libs.telemetry import mask_text
from tools.llm_eval import cancelling, comparing, extract, history, reporting, running
from tools.llm_eval.arguments import parse
from tools.llm_eval.refusal import FAILED, INTERRUPTED, code_of
from tools.with_env import fill_in_database, read_env_file

Command = Callable[[argparse.Namespace], Awaitable[int]]

COMMANDS: Mapping[str, Command] = {
    "run": running.run,
    "resume": running.resume,
    "cancel": cancelling.cancel_run,
    "report": reporting.report,
    "compare": comparing.compare_runs,
    "extract": extract.extract,
    "history": history.show_history,
}


def main(words: Sequence[str]) -> int:
    """Run one command; the exit code. A failure that a person can mend is a line on stderr."""
    options = parse(words)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_command(options))
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return INTERRUPTED
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        code = code_of(error)
        more = reporting.way_out(options.folder) if options.command == "resume" and code == FAILED else None
        sys.stderr.write("".join(f"{mask_text(one)}\n" for one in (line, more) if one))
        return code


async def _command(options: argparse.Namespace) -> int:
    return await COMMANDS[options.command](options)


if __name__ == "__main__":
    read_env_file(Path(".env"))
    fill_in_database(needed=False)
    telemetry.configure("eval", level="ERROR")
    sys.exit(main(sys.argv[1:]))
