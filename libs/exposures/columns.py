"""Exposures of one phase as arrays, one element for each: what Postgres packs into bytes and numpy reads.

A row is packed by Postgres itself into a record of fixed width and the records are joined into one value for each arm,
since a million rows through a driver cost many times what a million rows through numpy do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt

Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

MICROSECONDS_OF_DAY: Final = 86_400_000_000

STATUS: Final = {"ok": 1, "invalid": 2, "unavailable": 3, "skipped": 4}
STATUS_BITS: Final = 7
TIMED_OUT, CACHED, ALLOW, RULED, RULES_ALLOW, BUY, SELL, TIMED = (1 << bit for bit in range(3, 11))

RECORD: Final = np.dtype(
    [("as_of", ">i8"), ("ticker", ">i8"), ("unit", ">i8"), ("flags", ">i4"), ("ms", ">f4"), ("tokens", ">i4"),
     ("made", ">f8")]
)  # fmt: skip
"""As the functions of `PACKED` write it: network byte order, no padding, 44 bytes."""

_CODES = " ".join(f"when '{status}' then {code}" for status, code in STATUS.items())

# Tickers and units are hashed to 64 bits: two of a million fall together once in 37 million phases.
PACKED: Final = f"""
  timestamptz_send(as_of) || int8send(hashtextextended(ticker, 0)) || int8send(hashtextextended(unit, 0)) ||
  int4send(
    case status {_CODES} else 0 end
    + case when timed_out then {TIMED_OUT} else 0 end
    + case when cached then {CACHED} else 0 end
    + case when allow then {ALLOW} else 0 end
    + case when rules_allow is not null then {RULED} else 0 end
    + case when rules_allow then {RULES_ALLOW} else 0 end
    + case side when 'buy' then {BUY} when 'sell' then {SELL} else 0 end
    + case when total_ms is not null then {TIMED} else 0 end
  ) || float4send(coalesce(total_ms, 0)) || int4send(coalesce(tokens, 0)) ||
  float8send(coalesce(realised_return, 'NaN'))
"""
"""SQL: an exposure as the bytes of a `RECORD`."""


@dataclass(frozen=True)
class Columns:
    """Exposures side by side. `arm` is the position of each one's arm in `arms`; `ticker` and `unit` are hashes.

    `day` is the UTC date of market time in days since 2000-01-01, `total_ms` milliseconds, `made` the return by the
    horizon in the direction of the entry (0 without one), `settled` whether there is an outcome.
    """

    arms: tuple[str, ...]
    arm: npt.NDArray[np.int16]
    day: Integers
    ticker: Integers
    unit: Integers
    flags: npt.NDArray[np.int32]
    total_ms: Floats
    tokens: Floats
    settled: Bools
    made: Floats

    @classmethod
    def read(cls, packed: Mapping[str, Sequence[bytes]]) -> Self:
        """The exposures of arms, packed as `PACKED` says, in parts. Raises `ValueError` for what holds no records."""
        arms = tuple(sorted(packed))
        sizes = [sum(map(len, packed[arm])) // RECORD.itemsize for arm in arms]
        parts = [np.frombuffer(part, RECORD) for arm in arms for part in packed[arm]]
        rows: npt.NDArray[Any] = np.concatenate(parts) if parts else np.empty(0, RECORD)
        flags = rows["flags"].astype(np.int32)
        realised = rows["made"].astype(np.float64)
        settled = np.isfinite(realised)
        direction = np.where(flags & BUY, 1.0, np.where(flags & SELL, -1.0, 0.0))
        return cls(
            arms=arms,
            arm=np.repeat(np.arange(len(arms), dtype=np.int16), sizes),
            day=rows["as_of"].astype(np.int64) // MICROSECONDS_OF_DAY,
            ticker=rows["ticker"].astype(np.int64),
            unit=rows["unit"].astype(np.int64),
            flags=flags,
            total_ms=rows["ms"].astype(np.float64),
            tokens=rows["tokens"].astype(np.float64),
            settled=settled,
            made=np.where(settled, realised, 0.0) * direction,
        )

    def of(self, chosen: Bools | npt.NDArray[np.intp] | slice) -> "Columns":
        """These rows alone."""
        return Columns(
            self.arms, self.arm[chosen], self.day[chosen], self.ticker[chosen], self.unit[chosen], self.flags[chosen],
            self.total_ms[chosen], self.tokens[chosen], self.settled[chosen], self.made[chosen],
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.arm)

    def of_arm(self, arm: str) -> "Columns":
        """The rows of one arm, as they were read: those of an arm are neighbours."""
        first, end = np.searchsorted(self.arm, [self.arms.index(arm), self.arms.index(arm) + 1])
        return self.of(slice(int(first), int(end)))

    @cached_property
    def status(self) -> npt.NDArray[np.int32]:
        """The code of `STATUS`; 0 where nothing was judged yet."""
        return self.flags & STATUS_BITS

    @cached_property
    def valid(self) -> Bools:
        """Whether a valid answer came."""
        return self.status == STATUS["ok"]

    @cached_property
    def invalid(self) -> Bools:
        """Whether an answer came that does not validate, or the version could not even be asked."""
        return self.status == STATUS["invalid"]

    @cached_property
    def unavailable(self) -> Bools:
        """Whether the model was asked and no answer came."""
        return self.status == STATUS["unavailable"]

    @cached_property
    def skipped(self) -> Bools:
        """Whether the model was never asked."""
        return self.status == STATUS["skipped"]

    @cached_property
    def answered(self) -> Bools:
        """Whether an answer came, valid or not."""
        return self.valid | self.invalid

    @cached_property
    def entry(self) -> Bools:
        """Whether the forecast says to buy or to sell."""
        return (self.flags & (BUY | SELL)) != 0

    @cached_property
    def timed(self) -> Bools:
        """Whether the model was asked, so that there is a time."""
        return (self.flags & TIMED) != 0

    @cached_property
    def timed_out(self) -> Bools:
        """Whether no answer came in time."""
        return (self.flags & TIMED_OUT) != 0

    @cached_property
    def cached(self) -> Bools:
        """Whether the answer was kept from before, or was shared with another asker."""
        return (self.flags & CACHED) != 0

    @cached_property
    def allow(self) -> Bools:
        """Whether a valid decision allows."""
        return (self.flags & ALLOW) != 0

    @cached_property
    def ruled(self) -> Bools:
        """Whether the rules in code were judged beside it."""
        return (self.flags & RULED) != 0

    @cached_property
    def rules_allow(self) -> Bools:
        """Whether the rules in code allow."""
        return (self.flags & RULES_ALLOW) != 0
