"""This process's share of an engine's slots, given out in order of priority."""

import asyncio
import heapq
from itertools import count


class Slots:
    """At most `share` held at once; those who wait are served lower priority first, then first come first served."""

    def __init__(self, share: int) -> None:
        self._share = share
        self._used = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = count()
        self._gone = 0  # entries of the line whose callers left

    @property
    def share(self) -> int:
        """The most slots this process holds at once."""
        return self._share

    @property
    def used(self) -> int:
        """How many are held now."""
        return self._used

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return sum(not turn.done() for _, _, turn in self._waiting)

    def resize(self, share: int) -> None:
        """Change the share. Slots held beyond a smaller share stay held until they are given back."""
        self._share = share
        self._serve()

    def take_now(self) -> bool:
        """Take a slot if one is free and nobody waits."""
        if self._used >= self._share or self._waiting:
            return False
        self._used += 1
        return True

    async def take(self, priority: int, until: float) -> None:
        """Take a slot, waiting for it up to `time.monotonic()` `until`. Raises `TimeoutError`."""
        if self.take_now():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._order), turn))
        try:
            async with asyncio.timeout_at(until):
                await turn
        except (asyncio.CancelledError, TimeoutError):
            # The turn may have come in the same pass of the loop in which the caller left: it goes to the next one.
            if turn.done() and not turn.cancelled():
                self.give_back()
            else:
                turn.cancel()
                self._gone += 1
                self._forget_the_gone()
            raise

    def give_back(self) -> None:
        """Free a slot, and hand it to whoever is first in line."""
        self._used -= 1
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._used < self._share:
            turn = heapq.heappop(self._waiting)[2]
            if turn.done():
                self._gone -= 1
            else:
                self._used += 1
                turn.set_result(None)
        self._forget_the_gone()

    def _forget_the_gone(self) -> None:
        """Drop those at the head, so that the line is empty when nobody waits; the others once they are the most of
        it, since behind callers that come again and again they would never get to the head.
        """
        while self._waiting and self._waiting[0][2].done():
            heapq.heappop(self._waiting)
            self._gone -= 1
        if self._gone > len(self._waiting) // 2:
            here = [entry for entry in self._waiting if not entry[2].done()]
            self._gone -= len(self._waiting) - len(here)
            heapq.heapify(here)
            self._waiting = here
