"""What goes wrong with a broker, by what one may conclude from it.

BrokerError
├── BrokerUnreachable   nothing was sent
├── BrokerUncertain     it may have arrived
└── BrokerRefused       the broker said no, and did nothing
"""


class BrokerError(Exception):
    """A call to the broker failed; the message names the call."""


class BrokerUnreachable(BrokerError):
    """No connection could be made, so nothing was sent."""


class BrokerUncertain(BrokerError):
    """The request may have arrived and may have been obeyed: a timeout, a reset, a 5xx, an answer nobody can read."""


class BrokerRefused(BrokerError):
    """The broker answered that it will not do it. `code` is its own number for why, None where it gave none."""

    def __init__(self, call: str, status: int, *, code: int | None, message: str) -> None:
        number = f" {code}" if code is not None else ""
        super().__init__(f"{call}: {status}{number} {message}".rstrip())
        self.call = call
        self.status = status
        self.code = code
        self.message = message


class BrokerConfigError(Exception):
    """The environment does not say where the broker is; the message names the variable."""
