"""What nvidia-smi prints, and what else may come in its place; commands that fail, hang and flood."""

import asyncio
import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.watchdog import commands
from services.watchdog.commands import MOST_BYTES, CommandError, Program
from services.watchdog.docker import DockerError, unframed
from services.watchdog.readings import UnreadableError, parse, shown
from tests.fakes.docker_engine import framed

numbers = st.integers(0, 200_000)


@given(
    st.lists(numbers, min_size=1, max_size=16), st.sampled_from(["", " MiB"]), st.sampled_from(["\n", "\r\n", " \n\n"])
)
def test_the_fullest_of_several_cards_counts(cards: list[int], unit: str, end: str) -> None:
    assert parse("".join(f"{card}{unit}{end}" for card in cards)) == max(cards)


@pytest.mark.parametrize(
    "text",
    ["", "\n", "[N/A]", "[Not Supported]", "No devices were found", "9000\n[N/A]\n", "-1", "1e5", "nan", "inf", "9,000",
     "9000 GiB", "0x10", "9000 12000", "1" * 5000, "٩٠٠٠", "9000\n" * 65,
     "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."],
)  # fmt: skip
def test_whatever_is_no_number_of_mib_is_unreadable(text: str) -> None:
    with pytest.raises(UnreadableError, match="not a number of MiB: "):
        parse(text)


@given(st.integers(0, 2**37))
def test_each_byte_counts_and_is_shown(used: int) -> None:
    reading = parse(f"{used / 2**20:.20f}\n")
    assert reading * 2**20 == used
    assert float(shown(reading)) == reading


def test_one_byte_above_the_limit_is_above_and_looks_so() -> None:
    assert shown(10752.0) == "10752"
    assert shown(10752 + 2**-20) == "10752.000000953674"


@pytest.mark.parametrize("text", ["9000\n", "9000\n9000\n9000\n"])
def test_a_card_that_is_left_out_is_unreadable(text: str) -> None:
    assert parse("9000\n9100\n", cards=2) == 9100
    with pytest.raises(UnreadableError, match=r"\d readings for 2 cards: 9000"):
        parse(text, cards=2)


@given(st.text())
def test_no_text_breaks_the_reading(text: str) -> None:
    try:
        reading = parse(text)
    except UnreadableError as error:
        assert len(str(error)) < 250  # noqa: PT017 - either outcome is right
    else:
        assert 0 <= reading < 10**9


@given(st.text(min_size=1), st.text(), st.integers(1, 9))
def test_the_frames_of_docker_are_put_together(output: str, errors: str, cut_at: int) -> None:
    raw = framed(errors, stream=2, cut_at=cut_at) + framed(output, cut_at=cut_at)
    assert unframed(raw) == (output, errors)


@given(numbers, st.data())
def test_a_stream_that_was_cut_short_is_never_taken_for_a_smaller_number(number: int, data: st.DataObject) -> None:
    raw = framed(f"{number}\n", cut_at=100)
    with pytest.raises(DockerError):
        unframed(raw[: data.draw(st.integers(1, len(raw) - 1))])


@given(st.binary(min_size=1, max_size=200))
def test_no_bytes_break_the_frames(raw: bytes) -> None:
    try:
        output, errors = unframed(raw)
    except DockerError:
        return
    assert len(output) + len(errors) <= len(raw)


async def test_a_command_says_why_it_failed() -> None:
    with pytest.raises(CommandError, match=r"cannot run /no/such: No such file"):
        await Program(["/no/such"]).output(within_s=5)
    with pytest.raises(CommandError, match="sh ended with code 3: the driver is gone"):
        await Program(["sh", "-c", "echo the driver is gone >&2; exit 3"]).output(within_s=5)
    with pytest.raises(CommandError, match="false ended with code 1"):
        await Program(["false"]).run(within_s=5)


async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with pytest.raises(CommandError, match=r"sh took longer than 0\.5 s"):
        await Program(["sh", "-c", f"sleep 600 & echo $! > {child}; wait"]).output(within_s=0.5)
    number = int(child.read_text())
    while _runs(number):  # noqa: ASYNC110 - another process ends, of which no event tells
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("refused", [True, False])
async def test_a_command_that_cannot_be_killed_is_waited_for_no_longer_and_not_begun_twice(
    refused: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def killpg(group: int, number: int) -> None:
        assert number == signal.SIGKILL
        killed.append(group)
        if refused:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    killed, begun = list[int](), tmp_path / "begun"
    words = ["sh", "-c", f"echo x >> {begun}; exec sleep 600"]
    monkeypatch.setattr(commands, "END_S", 0.1)
    with monkeypatch.context() as unkillable:
        unkillable.setattr(commands.os, "killpg", killpg)
        programs = [Program(words), Program(words)]
        for ask in (programs[0].output, programs[1].run):
            with pytest.raises(
                CommandError, match=r"^sh took longer than 0\.5 s, and could not be ended: process \d+$"
            ):
                await ask(within_s=0.5)
            for again in range(2):
                with pytest.raises(CommandError, match=f"^the last sh still runs .*: process {killed[-1]}$"):
                    await ask(within_s=0.5 + again)
    while not begun.exists() or begun.stat().st_size < 4:  # noqa: ASYNC110 - other processes write it
        await asyncio.sleep(0.01)
    assert begun.read_text() == "x\nx\n"
    for group in killed:
        os.killpg(group, signal.SIGKILL)
        while _runs(group):  # noqa: ASYNC110 - another process ends, of which no event tells
            await asyncio.sleep(0.01)
    for program in programs:  # they ended at last, so others are begun
        with pytest.raises(CommandError, match=r"took longer than 0\.2 s$"):
            await program.output(within_s=0.2)


async def test_a_flood_is_refused_and_does_not_fill_the_memory() -> None:
    flood = f"import sys\nfor _ in range(300): sys.stdout.write('9' * {MOST_BYTES})"
    with pytest.raises(CommandError, match="printed 65536 bytes or more"):
        await Program([sys.executable, "-c", flood]).output(within_s=60)


async def test_what_a_restart_command_leaves_running_is_left_alone(tmp_path: Path) -> None:
    child = tmp_path / "child"
    await Program(["sh", "-c", f"sleep 600 & echo $! > {child}"]).run(within_s=30)
    number = int(child.read_text())
    time.sleep(0.05)  # noqa: ASYNC251 - nothing else is to run; long enough for a kill to arrive
    assert _runs(number)
    os.kill(number, 9)


def _runs(number: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
