"""The chain of verdicts, checked all the time: what is new each hour, everything once a day, the head in the log.

The logged head is the proof against whoever rewrites the whole table: it stands somewhere else.
"""

from dataclasses import replace
from datetime import UTC, date, datetime

import structlog
from prometheus_client import Gauge
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.alerts import raise_alert
from libs.trading.audit.links import START
from libs.trading.audit.verification import Verified, still_there, verify

BROKEN = Gauge("lexi_audit_chain_broken", "1 while the chain of verdicts does not hold, as this process found it.")
VERIFIED = Gauge("lexi_audit_chain_verified_seq", "The last verdict up to which this process found the chain whole.")

log = structlog.get_logger(__name__)


class ChainCheck:
    """Goes on where it stopped. The first check of a day (UTC) begins at the first row again.

    The last head it saw must stand as it was: that is how rows cut off at the end are noticed.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._head = START
        self._day: date | None = None

    async def __call__(self) -> None:
        """Check; a broken row is logged, alerted once, and stays on the gauge until a check finds the chain whole."""
        today = datetime.now(UTC).date()
        whole = self._day != today
        found = await verify(self._engine, START if whole else self._head)
        if whole and found.broken is None and self._head != START:
            found = replace(found, broken=await still_there(self._engine, self._head))
        if found.broken is not None:
            await self._found_broken(found)
            return
        self._head, self._day = found.head, today
        BROKEN.set(0)
        VERIFIED.set(found.head.seq)
        if whole:
            log.info("audit_head", seq=found.head.seq, hash=found.head.hash, rows=found.rows)

    async def _found_broken(self, found: Verified) -> None:
        BROKEN.set(1)
        log.error("audit_chain_broken", reason=str(found.broken), holds_until=found.head.seq)
        self._day = None  # look at everything next time: somebody may mend it
        async with self._engine.begin() as connection:
            words = f"The chain of verdicts does not hold: {found.broken}"
            await raise_alert(connection, key=f"chain:{found.broken}", kind="audit", text=words)
