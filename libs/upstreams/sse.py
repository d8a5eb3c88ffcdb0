"""Server-sent events from bytes that arrive in any pieces.

Follows the event stream format of the HTML standard (section 9.2.6) for what engines send: the `data` of each event.
Names, ids and retry times are skipped, as no engine's meaning hangs on them.
"""

MAX_EVENT_BYTES = 1024 * 1024
BOM = b"\xef\xbb\xbf"


class SseOverflow(Exception):
    """One event is longer than `MAX_EVENT_BYTES`."""


class SseParser:
    """Feed it bytes, get the data of the events that became complete.

    How the bytes are split makes no difference. Lines end in LF, CR LF or CR; an event that never got its blank line
    is dropped, as the standard asks.
    """

    __slots__ = ("_data", "_rest", "_size", "_skip_lf", "_started")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._skip_lf = False
        self._started = False

    @property
    def pending(self) -> bool:
        """Whether an event has begun that is not complete."""
        return bool(self._rest or self._data)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event completed by these bytes. Raises `SseOverflow`."""
        if (
            not self._rest
            and not self._data
            and not self._skip_lf
            and chunk.startswith(b"data: ")
            and b"\r" not in chunk
        ):
            self._started = True
            if chunk.endswith(b"\n\n") and chunk.count(b"\n") == 2:
                return [chunk[6:-2]]
        return self._feed_lines(chunk)

    def _feed_lines(self, chunk: bytes) -> list[bytes]:
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk[0] == 0x0A:
                chunk = chunk[1:]
        text = self._rest + chunk if self._rest else chunk
        if not self._started and text:
            if len(text) < len(BOM) and BOM.startswith(text):
                self._rest = text
                return []
            self._started = True
            text = text.removeprefix(BOM)
        if b"\r" in text:
            self._skip_lf = text.endswith(b"\r")
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = text.split(b"\n")
        events = [event for line in lines if (event := self._line(line)) is not None]
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise SseOverflow(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return events

    def _line(self, line: bytes) -> bytes | None:
        """Take one line; the data of the event where the line ended one."""
        if not line:
            if not self._data:
                return None
            event = b"\n".join(self._data)
            self._data.clear()
            self._size = 0
            return event
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
        return None
