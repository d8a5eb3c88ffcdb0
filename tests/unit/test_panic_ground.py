"""The clock, the disk that may hang, and the voice that nobody may be listening to."""

import threading

import pytest

from libs.trading.panic.ground import Pace, ThreadDisk
from tests.unit.test_panic_exit import VirtualClock


def test_work_is_done_in_its_order() -> None:
    disk = ThreadDisk()
    done: list[int] = []
    for number in range(5):
        disk.wait(lambda number=number: done.append(number))
    assert done == [0, 1, 2, 3, 4]
    assert disk.wait(lambda: 7) == 7


def test_whatever_fails_is_the_disks_trouble() -> None:
    disk = ThreadDisk()

    def full() -> None:
        raise OSError("no space left")

    def odd() -> None:
        raise ValueError("odd")

    with pytest.raises(OSError, match="no space left"):
        disk.wait(full)
    with pytest.raises(OSError, match="ValueError: odd"):
        disk.wait(odd)
    assert disk.wait(lambda: 7) == 7


def test_a_disk_that_hangs_is_waited_for_once() -> None:
    disk = ThreadDisk(limit_s=0.05)
    hanging, asked = threading.Event(), threading.Event()
    with pytest.raises(OSError, match="has not answered within"):
        disk.wait(lambda: hanging.wait(30))
    with pytest.raises(OSError, match="does not answer"):
        disk.wait(asked.set)
    assert not asked.is_set()
    hanging.set()
    assert _comes_back(disk)


def _comes_back(disk: ThreadDisk) -> bool:
    for _ in range(1000):
        try:
            return disk.wait(lambda: True)
        except OSError:
            threading.Event().wait(0.01)
    return False


async def test_pauses_grow_to_a_most() -> None:
    clock = VirtualClock()
    pace = Pace(clock, first_s=0.1, most_s=0.3)
    pauses: list[float] = []
    for _ in range(5):
        before = clock.passed
        await pace.rest()
        pauses.append(clock.passed - before)
    assert pauses == pytest.approx([0.1, 0.16, 0.256, 0.3, 0.3])
