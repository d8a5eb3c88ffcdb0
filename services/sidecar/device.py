"""Whether this machine has a card that NVIDIA's driver knows, asked of the driver's own library (NVML)."""

import asyncio
import ctypes
import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

Device: TypeAlias = Literal["cuda", "cpu"]

LIBRARY = "libnvidia-ml.so.1"
SUCCESS = 0
REUSED_S = 60.0
WAIT_S = 2.0


def find_device(load: Callable[[str], Any] = ctypes.CDLL) -> Device:
    """`cuda` where there is a card. Blocks while the driver thinks; call it in a thread."""
    try:
        nvml = load(LIBRARY)
        if nvml.nvmlInit_v2() != SUCCESS:
            return "cpu"
        count = ctypes.c_uint(0)
        found = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):  # no such library, or one that is not NVML
        return "cpu"
    return "cuda" if found == SUCCESS and count.value > 0 else "cpu"


class DeviceFinder:
    """Asks in a thread, since a driver may take its time, and remembers the answer for a while."""

    def __init__(self, find: Callable[[], Device] = find_device) -> None:
        self._find = find
        self._known: Device = "cpu"
        self._known_until = 0.0
        self._search: asyncio.Task[None] | None = None

    async def now(self) -> Device:
        """The device, as far as it is known within `WAIT_S`."""
        if time.monotonic() >= self._known_until:
            if self._search is None or self._search.done():
                self._search = asyncio.create_task(self._look())
            await asyncio.wait({self._search}, timeout=WAIT_S)
        return self._known

    async def _look(self) -> None:
        self._known = await asyncio.to_thread(self._find)
        self._known_until = time.monotonic() + REUSED_S
