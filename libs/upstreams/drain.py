"""How fast a line for slots moves, from when its callers got their turns."""

from collections import deque
from math import inf

LEAST_TURNS = 8
"""Turns that must have been seen before a caller is refused on the strength of the estimate."""
WINDOW_ROUNDS = 4
"""How many times the share of slots is looked back on: a whole share coming free in one moment, as it does where all
calls take equally long, must not look like speed."""
SPARE = 1.25
"""An answer is expected to take this much longer than estimated."""


class Drain:
    """The turns of one unbroken time in which callers waited. Times are seconds of a clock that never runs backwards.

    Nothing is known from before the line was last empty: while nobody waits, slots come free without a turn.
    """

    __slots__ = ("_before", "_counted", "_share", "_shortest", "_span", "_tokens", "_turns")

    def __init__(self, share: int) -> None:
        self._turns: deque[tuple[float, int]] = deque()
        self._start(share)

    def _start(self, share: int) -> None:
        self._share = max(1, share)
        self._span = self._share * -(-LEAST_TURNS // self._share)
        self._tokens = self._counted = 0
        self._shortest = self._before = inf
        self._turns.clear()

    def began(self, now: float, share: int) -> None:
        """The first caller stands in line, or the line is for another number of slots from now on."""
        self._start(share)
        self._turns.append((now, 0))

    def turned(self, now: float, tokens: int) -> None:
        """A caller who is expected to need that many tokens got a slot."""
        turns = self._turns
        self._shortest = min(self._shortest, self._running(now))
        self._counted += 1
        if self._counted == 2 * self._span:
            self._before, self._shortest, self._counted = self._shortest, inf, 0
        turns.append((now, tokens))
        self._tokens += tokens
        if len(turns) > WINDOW_ROUNDS * max(self._share, LEAST_TURNS):
            turns.popleft()
            self._tokens -= turns[0][1]

    def _running(self, now: float) -> float:
        """How long a round takes, if its last turn came now.

        Of as many turns as there are slots, and one, two had the same slot: a round is no shorter than the shortest
        call in it. The beginning of the line is not the beginning of a round, since calls were under way.
        """
        turns, span = self._turns, self._span
        return (now - turns[-span][0]) * self._share / span if len(turns) > span else inf

    @property
    def known(self) -> bool:
        """Whether enough turns were seen to refuse somebody for the wait to expect."""
        return len(self._turns) > max(self._share, LEAST_TURNS)

    def wait_s(self, ahead: int, now: float) -> float | None:
        """How long a caller with so many others ahead waits for a slot; None where no turn was seen yet."""
        turns = len(self._turns) - 1
        if turns < 1:
            return None
        return (ahead + 1) * (now - self._turns[0][0]) / turns

    def answer_s(self, tokens: int, now: float) -> float | None:
        """How long a slot is held for a request of so many tokens: as long as the average, less for a smaller one.

        By Little's law, a full share is held for as long as it takes to give out as many turns.
        """
        average = self.wait_s(self._share - 1, now)
        return average if average is None else average * self._part(tokens)

    def least_s(self, tokens: int, now: float) -> float:
        """How long it is held if all goes as well as it lately did at best; 0 where no round was seen yet.

        A stall makes the average long for whole rounds after it is over, the shortest round tells so with the next.
        """
        shortest = min(self._shortest, self._before, self._running(now))
        return 0.0 if shortest == inf else shortest * self._part(tokens)

    def _part(self, tokens: int) -> float:
        """What part of the average's time a request of so many tokens takes."""
        return min(1.0, tokens * (len(self._turns) - 1) / self._tokens) if self._tokens else 1.0
