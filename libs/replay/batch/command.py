"""`python -m libs.replay.batch --since yesterday --version 1.1.0`: ask for a batch and watch it to its end.

It only writes what is to be done into a row and reads how far that is: the jobs do the work, and go on with it whether
somebody watches or not.
"""

import argparse
import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine
from tqdm import tqdm

from libs.db.opening import open_database
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.process import explain
from libs.replay.batch.report import in_order
from libs.replay.batch.rows import MOST, Batch, BatchRefused, Progress, ask_for, find, progress
from libs.replay.batch.words import lines
from libs.settings import load
from libs.telemetry import mask_text

LOOK_S = 0.5
TAKEN_WITHIN_S = 10.0
"""After how long somebody who waits is told that no process of the jobs takes the batch."""
PLAIN_EVERY_S = 5.0
"""How often a line is written where there is no terminal to draw on."""
PAST = re.compile(r"(\d{1,6})(m|h|d)")
UNITS = {"m": "minutes", "h": "hours", "d": "days"}
INTERRUPTED = 130
BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt} of {total_fmt}{postfix}"


def moment(words: str, *, now: datetime) -> datetime:
    """A moment as people say it: `today`, `yesterday` (midnight, UTC), `24h` ago, or ISO 8601 (UTC without a zone).

    Raises `BatchRefused`.
    """
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    days = {"today": 0, "yesterday": 1}
    try:
        if words in days:
            return midnight - timedelta(days=days[words])
        if past := PAST.fullmatch(words):
            return now - timedelta(**{UNITS[past[2]]: int(past[1])})
        given = datetime.fromisoformat(words)
        return given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        forms = "today, yesterday, 24h, 7d, or 2026-01-31 with or without T09:30"
        raise BatchRefused(f"{words!r} is no moment: give {forms} (UTC)") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m libs.replay.batch", description="Send a period's decisions through another version."
    )
    parser.add_argument("--id", type=UUID, help="look at a batch that was asked for before")
    parser.add_argument("--since", help="decisions written from then on: yesterday, 24h, 2026-01-31 (UTC)")
    parser.add_argument("--until", help="and before then (default: now)")
    parser.add_argument("--prompt", default="policy", help="policy (default) or rationale")
    parser.add_argument("--version", help="the version to try")
    parser.add_argument("--limit", type=int, default=MOST, help="ask at most so many, a fair sample of the period")
    parser.add_argument("--operator", default=os.environ.get("USER", ""), help="who asks (default: USER)")
    return parser


async def _asked(engine: AsyncEngine, options: argparse.Namespace) -> Batch:
    """The batch to watch: a new one, or the one that was named."""
    if options.id is not None:
        return await _now(engine, options.id)
    if not options.since or not options.version:
        raise BatchRefused("name a period and a version: make replay SINCE=yesterday PROMPT=policy VERSION=1.1.0")
    if not 1 <= options.limit <= MOST:
        raise BatchRefused(f"limit: from 1 to {MOST}")
    now, settings = datetime.now(UTC), load(LLMSettings)
    async with engine.begin() as connection:
        return await ask_for(
            connection,
            Registry.load_quietly(settings.prompts_file, settings.prompts_lock),
            key=options.prompt,
            version=options.version,
            since=moment(options.since, now=now),
            until=None if not options.until else moment(options.until, now=now),
            most=options.limit,
            asked_by=options.operator or "command line",
        )


async def _now(engine: AsyncEngine, batch_id: UUID) -> Batch:
    async with engine.connect() as connection:
        batch = await find(connection, batch_id)
    if batch is None:
        raise BatchRefused(f"there is no batch {batch_id}")
    return batch


class Bar:
    """How far a batch is: a bar that is drawn again and again, or lines now and then where nobody looks at one."""

    def __init__(self) -> None:
        draws = sys.stderr.isatty()
        self._bar: Any = tqdm(bar_format=BAR, dynamic_ncols=True, leave=True) if draws else None
        self._said_at = -PLAIN_EVERY_S

    def show(self, batch: Batch, now: Progress) -> None:
        """Show where it stands."""
        gone = now.done + now.failed
        left = None if now.eta_s is None else f"about {timedelta(seconds=round(now.eta_s))} left"
        failed = f"{now.failed} failed" if now.failed else None
        notes = ", ".join(filter(None, (batch.state, left, failed, batch.error)))
        if self._bar is not None:
            self._bar.total, self._bar.n = batch.total, gone
            self._bar.set_description_str(f"{batch.prompt_key} {batch.prompt_version}", refresh=False)
            self._bar.set_postfix_str(notes, refresh=False)
            self._bar.refresh()
        elif not batch.open or time.monotonic() - self._said_at >= PLAIN_EVERY_S:
            self._said_at = time.monotonic()
            _tell(f"{gone} of {'?' if batch.total is None else batch.total}: {notes}")

    def tell(self, line: str) -> None:
        """Say something beside the bar."""
        if self._bar is None:
            _tell(line)
        else:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave it as it stands."""
        if self._bar is not None:
            self._bar.close()


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


async def watch(engine: AsyncEngine, batch: Batch, *, clock: Callable[[], float] = time.monotonic) -> Batch:
    """Show how far the batch is until it has ended; the batch as it ended."""
    bar, begun, told = Bar(), clock(), False
    try:
        while batch.open:
            async with engine.connect() as connection:
                now = await progress(connection, batch)
            bar.show(batch, now)
            if batch.state == "queued" and not told and clock() - begun > TAKEN_WITHIN_S:
                told = True
                bar.tell(
                    "nobody has taken it yet: either every process of services.jobs works on another batch, or none "
                    "runs (make run starts one). It stays queued."
                )
            await asyncio.sleep(LOOK_S)
            batch = await _now(engine, batch.id)
        async with engine.connect() as connection:
            bar.show(batch, await progress(connection, batch))
        return batch
    finally:
        bar.close()


def again(batch: Batch) -> str:
    """How to look at a batch again."""
    return f"make replay ID={batch.id}"


async def _run(options: argparse.Namespace) -> int:
    async with open_database(application="replay", pool_size=1) as engine:
        batch = await _asked(engine, options)
        if options.id is None:
            period = f"{batch.since:%Y-%m-%d %H:%M:%S} to {batch.until:%Y-%m-%d %H:%M:%S} UTC"
            _tell(f"decisions written {period} through {batch.prompt_key} {batch.prompt_version}: batch {batch.id}")
        try:
            batch = await watch(engine, batch)
        except asyncio.CancelledError:
            _tell(f"\nit goes on without you. Look again: {again(batch)}")
            return INTERRUPTED
    if batch.report is not None:
        for line in lines(in_order(batch.report), where=f"GET /llm/admin/replays/{batch.id}"):
            sys.stdout.write(f"{line}\n")
    if batch.state == "done":
        return 0
    _tell(f"batch {batch.id} {batch.state}{f': {batch.error}' if batch.error else ''}")
    return 0 if batch.state == "cancelled" else 1


def main(arguments: Sequence[str]) -> int:
    """Ask for a batch, watch it, print what it found. 2 with a line on stderr where it cannot be asked for."""
    options = _parser().parse_args(arguments)
    try:
        return asyncio.run(_run(options))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.stderr.write(f"{mask_text(line)}\n")
        return 2
