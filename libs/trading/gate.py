"""The gate: what an order is told. A pure function; what it reads and what it writes is `services/api/strategist`.

Every reason that applies is named, not only the first. POLICY reasons deny in enforce alone, HARD reasons in every
mode. `would_have` is what enforce would have said, whatever the mode.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext

from libs.trading.limits import Limits, Terms, bare
from libs.trading.reasons import Reason, of_rule
from libs.trading.types import ZERO, Answer, Book, Holding, LastPrice, Mode, Order, StoredDecision, SwitchState

PENDING = "pending"
"""`StoredDecision.error` of a forecast whose calls have not ended yet."""

WITHOUT_DECISION = frozenset(
    {Reason.NO_DECISION, Reason.STALE_DECISION, Reason.INVALID_DECISION, Reason.MODEL_UNAVAILABLE}
)
"""What LLM_GATE_ON_ERROR=allow lets pass."""


UNTRAPPED = Context(prec=40, traps=[])
"""Arithmetic that answers NaN or infinity instead of raising; no comparison with these is ever true, so they deny."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything a verdict depends on beside the order and its decision, as read in one transaction.

    `price` is our own last price, None without one. `halted` and `duplicate` are facts found out by who reads.
    """

    limits: Limits
    terms: Terms
    book: Book
    switches: SwitchState
    price: LastPrice | None
    halted: bool = False
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What acts (`verdict`), what enforce would have said (`would_have`), and why."""

    verdict: Answer
    would_have: Answer
    mode: Mode
    reasons: tuple[Reason, ...]

    @property
    def allowed(self) -> bool:
        """Whether the order may go out."""
        return self.verdict == "allow"


def judge(order: Order, decision: StoredDecision | None, situation: Situation) -> Verdict:
    """The verdict on an order. Total: it answers for any input and never raises.

    A reducing order passes whatever the policy, the limits and the halt say; only a claim that cannot be true is
    refused.
    """
    with localcontext(UNTRAPPED):
        if order.reduce_only:
            mode = mode_of(situation.switches)
            if situation.duplicate:
                return of_reduction(mode, Reason.DUPLICATE)
            return of_reduction(mode, None if may_reduce(order, situation.book) else Reason.NOT_REDUCING)
        policy = tuple(dict.fromkeys(policy_reasons(order, decision, situation.terms)))
        return of_entry(order, policy, situation)


@dataclass(frozen=True, slots=True)
class Authority:
    """What an entry was allowed by when it was judged first: its age in seconds, and the policy reasons that stood
    against it then and did not act.
    """

    age_s: float
    against: tuple[Reason, ...] = ()


def judge_again(order: Order, authority: Authority, situation: Situation) -> Verdict:
    """The verdict on sending an entry that was allowed before.

    Its authority stands unless it has grown too old, or rests on a mode that holds no longer: what passed in shadow or
    under the kill switch does not pass in enforce.
    """
    lapsed = not 0 <= authority.age_s <= situation.terms.ttl_s
    policy = dict.fromkeys((*authority.against, *((Reason.STALE_DECISION,) if lapsed else ())))
    with localcontext(UNTRAPPED):
        return of_entry(order, tuple(policy), situation)


def of_entry(order: Order, policy: tuple[Reason, ...], situation: Situation) -> Verdict:
    """The verdict on an entry with these policy reasons against it."""
    mode, hard = mode_of(situation.switches), tuple(hard_reasons(order, situation))
    if situation.terms.allow_without and WITHOUT_DECISION.issuperset(policy):
        return conclude(mode, policy=(), hard=hard, noted=policy)
    return conclude(mode, policy=policy, hard=hard)


def of_reduction(mode: Mode, refusal: Reason | None) -> Verdict:
    """The verdict on a reducing order: it passes, unless `refusal` says why its claim cannot be true."""
    if refusal is None:
        return Verdict("allow", "allow", mode, (Reason.ALLOW,))
    return Verdict("deny", "deny", mode, (refusal,))


def mode_of(switches: SwitchState) -> Mode:
    """The kill switch outranks shadow."""
    if switches.gate_disabled:
        return "disabled"
    return "shadow" if switches.shadow else "enforce"


def conclude(
    mode: Mode, *, policy: tuple[Reason, ...], hard: tuple[Reason, ...], noted: tuple[Reason, ...] = ()
) -> Verdict:
    """Put an entry's reasons together: the only place where modes differ, and they differ in nothing but what acts."""
    would_deny = bool(policy or hard)
    denied = bool(hard) or (mode == "enforce" and bool(policy))
    used_switch = (Reason.KILL_SWITCH,) if mode == "disabled" else ()
    reasons = (*used_switch, *policy, *noted, *hard) or (Reason.ALLOW,)
    return Verdict("deny" if denied else "allow", "deny" if would_deny else "allow", mode, reasons)


def policy_reasons(order: Order, decision: StoredDecision | None, terms: Terms) -> Iterator[Reason]:
    """What speaks against the decision as an authority for this order."""
    if decision is None:
        yield Reason.NO_DECISION
        return
    if mismatched(order, decision):
        yield Reason.MISMATCH
    if decision.age_s is None:
        yield Reason.NO_DECISION
    elif decision.past_due or not 0 <= decision.age_s <= terms.ttl_s:
        yield Reason.STALE_DECISION
    yield from answer_reasons(decision, terms)
    if not decision.rules_allow or decision.rules_reasons:
        yield from (of_rule(code) for code in decision.rules_reasons or ("",))
    if decision.used_by not in {None, order.client_order_id}:
        yield Reason.DECISION_USED


def mismatched(order: Order, decision: StoredDecision) -> bool:
    """Whether the stored signal is about something else than the order."""
    return (
        decision.ticker != order.ticker
        or (order.horizon is not None and order.horizon != decision.horizon)
        or decision.side != order.side
    )


def answer_reasons(decision: StoredDecision, terms: Terms) -> Iterator[Reason]:
    """What the model's answer says, or why there is none."""
    if decision.status == "skipped" and decision.error == PENDING:
        yield Reason.NO_DECISION
    elif decision.status in {"skipped", "unavailable"}:
        yield Reason.MODEL_UNAVAILABLE
    elif decision.status != "ok" or decision.allow is None:
        yield Reason.INVALID_DECISION
    else:
        if not decision.allow:
            yield Reason.POLICY_DENY
        elif decision.reasons:  # it allows and says why not: no clear word to trade on
            yield Reason.INVALID_DECISION
        if decision.answered_by != terms.model:
            yield Reason.MODEL_FALLBACK


def hard_reasons(order: Order, situation: Situation) -> Iterator[Reason]:
    """What denies in every mode."""
    limits, book = situation.limits, situation.book
    known = sound(book)
    if situation.duplicate:
        yield Reason.DUPLICATE
    if situation.halted:
        yield Reason.HALTED
    if not book.reconciled or not known:
        yield Reason.RECONCILING
    if bare(order.ticker) in limits.restricted_tickers:
        yield Reason.RESTRICTED
    if book.orders_last_minute >= limits.max_orders_per_min:
        yield Reason.LIMIT_RATE
    if not book.lost_today < limits.max_daily_loss:
        yield Reason.LIMIT_DAILY_LOSS
    yield from price_reasons(order, situation)
    yield from size_reasons(order, situation)
    if known:
        yield from exposure_reasons(order, situation)


def price_reasons(order: Order, situation: Situation) -> Iterator[Reason]:
    """Whether the order's price can be believed."""
    last, limits = situation.price, situation.limits
    if last is None or not 0 <= last.age_s <= limits.max_price_age_s or not positive(last.price):
        yield Reason.STALE_PRICE
        return
    off, collar = abs(order.ref_price - last.price) * 100, limits.price_collar_pct * last.price
    if not positive(order.ref_price) or not off <= collar:
        yield Reason.PRICE_COLLAR


def size_reasons(order: Order, situation: Situation) -> Iterator[Reason]:
    """Whether the order by itself is too large."""
    limits = situation.limits
    if not positive(order.qty) or not order.qty <= limits.max_order_qty:
        yield Reason.LIMIT_QTY
    price = order_price(order, situation.price)
    if not positive(order.qty) or not positive(price) or not order.qty * price <= limits.max_order_notional:
        yield Reason.LIMIT_NOTIONAL


def exposure_reasons(order: Order, situation: Situation) -> Iterator[Reason]:
    """Whether positions would grow too large. Sizes are worst cases: all that is open may still fill."""
    limits, price = situation.limits, order_price(order, situation.price)
    if not positive(order.qty) or not positive(price):
        return
    holdings = with_order(order, situation.book, price=price).holdings or {}
    after = holdings[order.ticker]
    if not after.worst_qty * after.price <= limits.max_position_notional:
        yield Reason.LIMIT_POSITION
    if not sum((each.worst_qty * each.price for each in holdings.values()), ZERO) <= limits.max_gross_notional:
        yield Reason.LIMIT_GROSS


def order_price(order: Order, last: LastPrice | None) -> Decimal:
    """What the order is valued at: the larger of its own price and ours."""
    return order.ref_price if last is None or not order.ref_price < last.price else last.price


def sound(book: Book) -> bool:
    """Whether the account is known, and in numbers that limits can be measured by."""
    if book.holdings is None or not book.lost_today.is_finite():
        return False
    return all(
        each.qty.is_finite() and each.buying.is_finite() and each.selling.is_finite() and not_negative(each.price)
        for each in book.holdings.values()
    )


def with_order(order: Order, book: Book, *, price: Decimal) -> Book:
    """The book once an entry is on its way: for the limits, and for the next order of the same transaction."""
    if book.holdings is None:
        return book
    held = book.holdings.get(order.ticker, Holding())
    buying, selling = (order.qty, ZERO) if order.side == "buy" else (ZERO, order.qty)
    after = Holding(
        qty=held.qty, buying=held.buying + buying, selling=held.selling + selling, price=max(held.price, price)
    )
    return Book({**book.holdings, order.ticker: after}, book.lost_today, book.orders_last_minute + 1, book.reconciled)


def may_reduce(order: Order, book: Book) -> bool:
    """Whether a reducing order can be true by what we know; an unknown account contradicts nothing.

    The broker's own position is checked again when the order is sent, and it is the one that decides.
    """
    if not positive(order.qty):
        return False
    if book.holdings is None or not book.reconciled or not sound(book):
        return True
    held = book.holdings.get(order.ticker, Holding())
    most = held.qty + held.buying if order.side == "sell" else held.selling - held.qty
    return order.qty <= most


def reduces(order: Order, held: Decimal) -> bool:
    """Whether an order of this side and size only makes a position of `held` (signed) smaller, at most to zero."""
    against = held if order.side == "sell" else -held
    return positive(order.qty) and order.qty <= against


def positive(value: Decimal) -> bool:
    """Whether a number is finite and above zero."""
    return value.is_finite() and value > 0


def not_negative(value: Decimal) -> bool:
    """Whether a number is finite and not below zero."""
    return value.is_finite() and value >= 0
