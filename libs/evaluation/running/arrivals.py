"""When items are asked: as soon as a place is free (closed loop), or at moments drawn beforehand (open loop).

In the closed loop a slow model is asked less often, and the questions that would have waited behind its slow moments
are never put: its latency looks better than its users' would (coordinated omission). In the open loop the moments come
from a Poisson process of the wanted rate, whatever has been answered so far, and an item that is put late says by how
much, so that lateness on our side counts as waiting too.
"""

import asyncio
import random
from collections.abc import Callable


class Arrivals:
    """The moments of a Poisson process: independent, exponentially distributed gaps with a mean of `1 / rate` seconds.

    `clock` gives seconds that never run backwards. Same seed, same gaps. Raises `ValueError` for a rate that is none.
    """

    def __init__(self, rate: float, *, seed: int, clock: Callable[[], float]) -> None:
        if not 0 < rate < float("inf"):
            raise ValueError(f"the rate must be above 0 arrivals per second, not {rate}")
        self._rate = rate
        self._chance = random.Random(seed)  # noqa: S311 - gaps, not secrets
        self._clock = clock
        self._next = clock()

    async def next(self) -> float:
        """Wait for the next moment and return it. One that is past already is returned at once."""
        self._next += self._chance.expovariate(self._rate)
        await asyncio.sleep(max(0.0, self._next - self._clock()))  # at least once round the loop: what began must run
        return self._next

    def resume(self) -> None:
        """Go on from now: what was planned for while nothing could be asked is not late, it was not to be."""
        self._next = max(self._next, self._clock())
