"""How the broker is reached: connections with limits, and whatever proxy the environment names, if it can be used."""

import logging
import ssl
from urllib.parse import SplitResult, urlsplit

import httpx

from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.errors import BrokerConfigError

_CONNECT_S = 2.0
_KEEP_S = 4.0
"""A little less than the shortest time after which servers close a connection that nobody uses."""
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_UNUSABLE = (ValueError, ImportError, OSError, httpx.InvalidURL)

log = logging.getLogger(__name__)


def open_connections(
    address: BrokerAddress, *, call_limit_s: float, transport: httpx.AsyncBaseTransport | None
) -> httpx.AsyncClient:
    """A client for that address. A proxy, or a file of authorities, that cannot be used is left out, with a warning.

    Raises `BrokerConfigError` where the address itself cannot be used.
    """
    try:
        parts = urlsplit(address.base_url)
        try:
            return _opened(address, parts, call_limit_s, transport=transport, trust_env=parts.hostname not in _LOOPBACK)
        except _UNUSABLE as error:
            log.warning("the proxy or the authorities of the environment cannot be used (%s)", type(error).__name__)
            return _opened(address, parts, call_limit_s, transport=transport, trust_env=False)
    except _UNUSABLE as error:
        raise BrokerConfigError(f"the address of the broker cannot be used ({type(error).__name__})") from None


def _opened(
    address: BrokerAddress,
    parts: SplitResult,
    call_limit_s: float,
    *,
    transport: httpx.AsyncBaseTransport | None,
    trust_env: bool,
) -> httpx.AsyncClient:
    headers = {"Accept": "application/json"}
    if address.key_id:
        headers |= {"APCA-API-KEY-ID": address.key_id, "APCA-API-SECRET-KEY": address.secret}
    return httpx.AsyncClient(
        base_url=address.base_url,
        headers=headers,
        timeout=httpx.Timeout(call_limit_s, connect=min(_CONNECT_S, call_limit_s)),
        limits=httpx.Limits(max_connections=16, max_keepalive_connections=16, keepalive_expiry=_KEEP_S),
        transport=transport,
        trust_env=trust_env,
        # Loading the authorities takes longer than a whole call on loopback, and plain HTTP needs none.
        verify=parts.scheme == "https" or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
