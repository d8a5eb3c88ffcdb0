"""What each key may ask for at once and per minute.

Requests and tokens per minute are token buckets that hold one minute's worth and fill evenly: within any `w` seconds at
most `limit * (1 + w / 60)` are charged, which is twice the limit for a minute that begins with a full bucket. Tokens
are charged by their estimate; when the answer ended, the difference is given back, or owed: a caller whose answers were
longer than estimated is admitted again once the bucket made up for it.

The limits are those of the key as it was just read, so a changed key file counts from the next request on. Calls that
began while the key had no limit at all are not counted. All state is in this process.
"""

from collections.abc import Callable
from math import ceil
from time import monotonic

from libs.keys import Key, KeyLimits
from services.api.dataplane.errors import ApiError

MINUTE_S = 60.0
GRAIN = 1e-6
"""What floats may be wrong by: a bucket this close to what is asked has it."""


class _Bucket:
    """Holds at most `limit` and gains that much in a minute. `level` is below zero where more was used than charged."""

    __slots__ = ("_limit", "_seen", "level")

    def __init__(self, limit: int, now: float) -> None:
        self._limit = limit
        self._seen = now
        self.level = float(limit)

    def fill(self, now: float) -> None:
        """Gain what came in up to `now`."""
        if now > self._seen:
            self.level = min(self._limit, self.level + (now - self._seen) * self._limit / MINUTE_S)
            self._seen = now

    def advance(self, limit: int, now: float) -> None:
        """Fill up to `now` at the old limit, then hold to the one in force."""
        self.fill(now)
        if limit != self._limit:
            self.level = min(limit, self.level + max(0, limit - self._limit))
            self._limit = limit

    def give_back(self, amount: int, now: float) -> None:
        """Put right what was charged; a negative amount is owed."""
        self.fill(now)
        self.level = min(self._limit, self.level + amount)

    def holds(self, amount: float) -> bool:
        """Whether it holds `amount`."""
        return self.level >= amount - GRAIN

    def wait_s(self, amount: float) -> float:
        """Seconds until it holds `amount`; 0 where it does."""
        return 0.0 if self.holds(amount) else (amount - self.level) * MINUTE_S / self._limit

    @property
    def full(self) -> bool:
        return self.level >= self._limit - GRAIN

    @property
    def left(self) -> int:
        """Whole units that it holds."""
        return max(0, int(self.level + GRAIN))


class _Account:
    """What one key used lately and has under way."""

    __slots__ = ("_limits", "clock", "in_flight", "requests", "tokens")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._limits: KeyLimits | None = None
        self.in_flight = 0
        self.requests: _Bucket | None = None
        self.tokens: _Bucket | None = None

    def advance(self, limits: KeyLimits, now: float) -> None:
        """Bring the buckets up to `now` and to the limits in force."""
        if limits is self._limits:  # the key file was not read again: only time has passed
            if self.requests is not None:
                self.requests.fill(now)
            if self.tokens is not None:
                self.tokens.fill(now)
            return
        self._limits = limits
        self.requests = _advanced(self.requests, limits.requests_per_minute, now)
        self.tokens = _advanced(self.tokens, limits.tokens_per_minute, now)

    def idle(self, now: float) -> bool:
        """Whether a new account would be the same as this one."""
        if self._limits is not None:
            self.advance(self._limits, now)
        return self.in_flight == 0 and all(bucket is None or bucket.full for bucket in (self.requests, self.tokens))


def _advanced(bucket: _Bucket | None, limit: int | None, now: float) -> _Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return _Bucket(limit, now)
    bucket.advance(limit, now)
    return bucket


class Admission:
    """One admitted request."""

    __slots__ = ("_account", "_estimate")

    def __init__(self, account: _Account | None, estimate: int) -> None:
        self._account = account
        self._estimate = estimate

    def close(self, tokens: int | None) -> None:
        """The request ended and took `tokens` in all; None where nobody counted: the estimate stands. Idempotent."""
        account = self._account
        if account is None:
            return
        self._account = None
        account.in_flight -= 1
        if tokens is not None and account.tokens is not None:
            account.tokens.give_back(self._estimate - tokens, account.clock())


_UNLIMITED = Admission(None, 0)


class Callers:
    """Admits the requests of keys within their limits. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._sweep_at = clock() + MINUTE_S

    @property
    def names(self) -> int:
        """How many keys have used something of their limits lately."""
        return len(self._accounts)

    def admit(self, key: Key, tokens: int) -> Admission:
        """Admit a request of about `tokens` tokens, and charge them. Close what it returns when the request ended.

        Raises `ApiError` (429 `rate_limit_exceeded`) that says which limit is met and when to come again; a refused
        request is not charged.
        """
        limits = key.limits
        concurrent = limits.concurrent
        if concurrent is None and limits.requests_per_minute is None and limits.tokens_per_minute is None:
            return _UNLIMITED
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep(now)
        account = self._accounts.get(key.name)
        if account is None:
            account = self._accounts[key.name] = _Account(self._clock)
        account.advance(limits, now)
        requests, budget = account.requests, account.tokens
        if (
            (concurrent is not None and account.in_flight >= concurrent)
            or (requests is not None and not requests.holds(1))
            or (budget is not None and not budget.holds(tokens))
        ):
            raise _refusal(key, account, tokens)
        account.in_flight += 1
        if requests is not None:
            requests.level -= 1
        if budget is not None:
            budget.level -= tokens
        return Admission(account, tokens)

    def _sweep(self, now: float) -> None:
        """Forget who owes nothing, so that names do not pile up."""
        self._sweep_at = now + MINUTE_S
        self._accounts = {name: account for name, account in self._accounts.items() if not account.idle(now)}


def _left(limits: KeyLimits, account: _Account) -> list[tuple[str, int]]:
    headers: list[tuple[str, int]] = []
    for what, limit, bucket in (
        ("requests", limits.requests_per_minute, account.requests),
        ("tokens", limits.tokens_per_minute, account.tokens),
    ):
        if limit is not None and bucket is not None:
            headers += [(f"x-ratelimit-limit-{what}", limit), (f"x-ratelimit-remaining-{what}", bucket.left)]
    return headers


def _refusal(key: Key, account: _Account, tokens: int) -> ApiError:
    """Why the request may not pass now: of several limits met, the one that takes longest."""
    limits = key.limits
    budget = limits.tokens_per_minute
    if budget is not None and tokens > budget:
        message = (
            f"this request may take about {tokens} tokens, more than the {budget} per minute of the key {key.name}: "
            "it can never pass; ask for a shorter answer or send a shorter prompt"
        )
        return _limited(message, {"x-should-retry": "false"}, limits=limits, account=account)
    wait_s, message = -1.0, ""
    if limits.concurrent is not None and account.in_flight >= limits.concurrent:
        wait_s, message = 0.0, f"the key {key.name} has {account.in_flight} calls in flight, its limit"
    for what, limit, bucket, amount in (
        ("requests", limits.requests_per_minute, account.requests, 1),
        ("tokens", budget, account.tokens, tokens),
    ):
        if bucket is not None and (needed_s := bucket.wait_s(amount)) > max(0.0, wait_s):
            wait_s, message = needed_s, f"the key {key.name} has used up its {limit} {what} per minute"
    seconds = min(max(1, ceil(wait_s)), int(MINUTE_S))
    return _limited(
        f"{message}; come again in {seconds} s", {"Retry-After": str(seconds)}, limits=limits, account=account
    )


def _limited(message: str, headers: dict[str, str], *, limits: KeyLimits, account: _Account) -> ApiError:
    shown = {name: str(number) for name, number in _left(limits, account)}
    return ApiError(429, "rate_limit_exceeded", message, headers={**shown, **headers})
