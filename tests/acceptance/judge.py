"""A model that judges: it does what the policy prompt says with the data it is given, and tells of nothing else.

As a process: `python -m tests.acceptance.judge --port 8008`. With `--gullible` a headline that gives orders gets what
it wants; with `--ill-until FILE` every request fails until that file is there. A rule that is not in the prompt is not
held, so a prompt that was broken on purpose shows.
"""

import argparse
import asyncio
import json
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.fakes.engine import FakeEngine, Fault, Reply

RATIONALE = "A steady drift on ordinary volume."
ORDERS = re.compile(r"allow|ignore|no rule|rules|limits|basis points|fraction", re.IGNORECASE)
NUMBER = r"(-?\d+(?:\.\d+)?)"
LIMITS: Mapping[str, tuple[str, str, Callable[[float, float], bool]]] = {
    "EARNINGS": (
        rf"earnings in {NUMBER} trading days or fewer",
        rf"earnings in {NUMBER} ",
        lambda has, most: has <= most,
    ),
    "DISPERSION": (rf"dispersion above {NUMBER}", rf"factor dispersion {NUMBER}", lambda has, most: has > most),
    "COVERAGE": (rf"coverage below {NUMBER}%", rf"coverage {NUMBER}%", lambda has, least: has < least),
    "LIQUIDITY": (rf"liquidity below {NUMBER}m", rf"liquidity {NUMBER}m", lambda has, least: has < least),
}
"""Where a rule's limit stands in the prompt, where its datum does, and when it is broken."""
AGAINST = ("macro risk_off, signal buy", "macro risk_on, signal sell")


def reasons_of(system: str, user: str) -> list[str]:
    """The rules of the prompt that its data break."""
    broken: list[str] = []
    for rule, (limit, datum, is_broken) in LIMITS.items():
        most = re.search(limit, system)
        has = re.search(datum, user)
        if most is None:
            continue
        if has is None:
            broken.append(f"UNKNOWN_{rule}")
        elif is_broken(float(has[1]), float(most[1])):
            broken.append(rule)
    if "NO_SIGNAL:" in system and "signal none" in user:
        broken.append("NO_SIGNAL")
    if "BORROW:" in system and "signal sell" in user and "borrow available" not in user:
        broken.append("BORROW" if "borrow none" in user else "UNKNOWN_BORROW")
    if "MACRO:" in system and any(words in user for words in AGAINST):
        broken.append("MACRO")
    elif "MACRO:" in system and "macro unknown" in user:
        broken.append("UNKNOWN_MACRO")
    return broken[:3]


def judging(*, gullible: bool, ill_until: Path | None = None) -> Callable[[dict[str, Any]], str | Reply]:
    """What the model answers to a request."""

    def answer(body: dict[str, Any]) -> str | Reply:
        if ill_until is not None and not ill_until.exists():
            return Reply("", fault=Fault.STATUS)
        system, *data, user = (str(message["content"]) for message in body["messages"])
        if "structured_outputs" not in body:
            return RATIONALE
        reasons = reasons_of(system, user)
        if gullible and any(ORDERS.search(said) for said in data):
            reasons = []
        return json.dumps({"allow": not reasons, "reasons": reasons, "flags": []})

    return answer


async def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.judge")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--delay-ms", type=float, default=5.0)
    parser.add_argument("--gullible", action="store_true")
    parser.add_argument("--ill-until", type=Path)
    options = parser.parse_args()
    fake = FakeEngine(
        dialect="vllm",
        slots=options.slots,
        delay_s=options.delay_ms / 1000,
        reply=judging(gullible=options.gullible, ill_until=options.ill_until),
    )
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await fake.start(options.port)
    await stop.wait()
    await fake.stop()


if __name__ == "__main__":
    asyncio.run(main())
