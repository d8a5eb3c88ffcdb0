"""The command line of the fake engine as a process."""

import argparse

from tests.fakes.engine_replies import Fault


def arguments() -> argparse.Namespace:
    """What `python -m tests.fakes.engine` was told."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fakes.engine", description="A fake model server on loopback."
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the first line printed names it")
    parser.add_argument("--dialect", choices=("vllm", "llamacpp", "openai"), default="vllm")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="from taking a slot to the first chunk")
    parser.add_argument("--gap-ms", type=float, default=0.0, help="between chunks")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--model", default="Lexi")
    parser.add_argument("--reply", default="OK")
    parser.add_argument("--reply-by-constraint", action="store_true", help="answer within the constraint asked for")
    parser.add_argument("--fault", choices=[fault.value for fault in Fault], default="none")
    return parser.parse_args()
