"""How fast a line for slots moves, from when its callers got their turns."""

from collections import deque

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

    __slots__ = ("_share", "_tokens", "_turns")

    def __init__(self, share: int) -> None:
        self._share = share
        self._tokens = 0
        self._turns: deque[tuple[float, int]] = deque()

    def began(self, now: float, share: int) -> None:
        """The first caller stands in line."""
        self._share = share
        self._tokens = 0
        self._turns.clear()
        self._turns.append((now, 0))

    def turned(self, now: float, tokens: int) -> None:
        """A caller who is expected to need that many tokens got a slot."""
        turns = self._turns
        turns.append((now, tokens))
        self._tokens += tokens
        if len(turns) > WINDOW_ROUNDS * max(self._share, LEAST_TURNS):
            turns.popleft()
            self._tokens -= turns[0][1]

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
        if average is None or not self._tokens:
            return average
        return average * min(1.0, tokens * (len(self._turns) - 1) / self._tokens)
