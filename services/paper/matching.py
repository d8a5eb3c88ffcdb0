"""The rules of one order: when it ends, whether it trades at a price, and how much of it at a time. Pure."""

from datetime import datetime
from decimal import ROUND_DOWN, Decimal
from typing import Literal, TypeAlias

from services.paper.types import UNIT, Order

Ending: TypeAlias = Literal["filled", "canceled", "expired", "rejected"]


def end(order: Order, status: Ending, now: datetime) -> None:
    """Give an order its final status."""
    order.status = status
    order.updated_at = now
    order.cancel_at = order.reject_at = order.due_at = None
    match status:
        case "filled":
            order.filled_at = now
        case "canceled":
            order.canceled_at = now
        case "expired":
            order.expired_at = now
        case "rejected":
            order.failed_at = now


def ended(order: Order, now: datetime, *, held: bool) -> bool:
    """End an open order whose time has come, and say whether it was: rejected, cancelled, or expired.

    `held` keeps cancels pending that have no end of their own.
    """
    if order.reject_at is not None and order.reject_at <= now:
        end(order, "rejected", now)
    elif order.status == "pending_cancel" and cancel_is_due(order, now, held=held):
        end(order, "canceled", now)
    elif order.expires_at is not None and order.expires_at <= now:
        end(order, "expired", now)
    return not order.open


def cancel_is_due(order: Order, now: datetime, *, held: bool) -> bool:
    """Whether a pending cancel comes through."""
    return not held if order.cancel_at is None else order.cancel_at <= now


def trades_at(order: Order, price: Decimal) -> bool:
    """Whether an order trades at this price: a market order at any, a limit order at its limit or better."""
    if order.limit_price is None:
        return True
    return price <= order.limit_price if order.side == "buy" else price >= order.limit_price


def next_slice(order: Order) -> Decimal:
    """How much fills next: an even part of what is left, in whole units where the order is, the rest at the end."""
    if order.slices_left <= 1:
        return order.leaves
    unit = Decimal(1) if order.qty == order.qty.to_integral_value() else UNIT
    part = (order.leaves / order.slices_left).quantize(unit, rounding=ROUND_DOWN)
    return part or order.leaves
