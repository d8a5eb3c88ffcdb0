"""How far a run is: a bar that is drawn again and again, or a line now and then where nobody looks at one."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from libs.evaluation.running.row import Row
from libs.judgement.assess import POLICY

PLAIN_EVERY_S = 5.0
BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt} of {total_fmt}{postfix}"
RATE_OVER_S = 10.0
"""Over how long the rows a second are counted: of late, not since the beginning."""
LONGEST_REASON = 100
FEW = 10
"""Fewer rows do not tell how long the rest takes."""


class Progress:
    """Shows every row that came; use it as a context. `done` of `total` are there already."""

    def __init__(
        self, total: int, *, done: int = 0, description: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._clock = total, clock
        self.done = done
        self.came = self._answered = self._valid = self._decisions = self._allowed = self.failures = 0
        self._began = self._said_at = self._marked_at = clock()
        self._marked, self._rate = 0, 0.0
        self._said = -1
        self._told: set[str] = set()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=description, bar_format=BAR, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it as it stands."""
        if self._bar is not None:
            self._bar.set_postfix_str(self.notes(), refresh=False)
            self._bar.close()
        elif self.came and self._said != self.done:
            _write(f"{self.done} of {self._total}{self.notes()}")

    def seen(self, row: Row) -> None:
        """Count a row, and show where it all stands now and then."""
        self.came += 1
        self.done += 1
        if not row.answered:
            self._failed(row.error or "no reason given")
        self._answered += row.status in {"ok", "invalid"}
        self._valid += row.status == "ok"
        if row.prompt == POLICY and row.status == "ok":
            self._decisions += 1
            self._allowed += bool(row.allow)
        if self._bar is not None:
            self._bar.set_postfix_str(self.notes(), refresh=False)
            self._bar.update(1)
        elif self._clock() - self._said_at >= PLAIN_EVERY_S:
            self._said_at, self._said = self._clock(), self.done
            _write(f"{self.done} of {self._total}{self.notes()}")

    def _failed(self, error: str) -> None:
        """Count what got no answer, and say once of each kind why: more of it may quote a prompt."""
        self.failures += 1
        kind = ":".join(error.split(":")[:2])[:LONGEST_REASON]
        if kind not in self._told:
            self._told.add(kind)
            self.tell(f"no answer: {kind}")

    def notes(self) -> str:
        """The rates in words: rows a second of late, how many are valid, how many allow, what failed."""
        parts = [f"{self._per_second():.1f}/s"]
        if self._answered:
            parts.append(f"{100 * self._valid / self._answered:.0f} % valid")
        if self._decisions:
            parts.append(f"{100 * self._allowed / self._decisions:.0f} % allow")
        if self.failures:
            parts.append(f"{self.failures} without an answer")
        if left := self._left_s():
            parts.append(f"about {_duration(left)} left")
        return f", {', '.join(parts)}"

    def tell(self, line: str) -> None:
        """Say something beside the bar."""
        if self._bar is None:
            _write(line)
        else:
            self._bar.write(line, file=sys.stderr)

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    def _per_second(self) -> float:
        now = self._clock()
        if now - self._marked_at >= RATE_OVER_S:
            self._rate = (self.came - self._marked) / (now - self._marked_at)
            self._marked_at, self._marked = now, self.came
        if self._rate:
            return self._rate
        return self.came / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def _left_s(self) -> float:
        rate = self._per_second()
        return (self._total - self.done) / rate if rate > 0 and self.came >= FEW else 0.0


def _duration(seconds: float) -> str:
    """A span in words of one unit, as far as somebody who waits wants to know it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
