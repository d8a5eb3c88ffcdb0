"""What nvidia-smi prints, and what else may come in its place; commands that fail, hang and flood."""

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.watchdog.commands import MOST_BYTES, CommandError, output_of, run
from services.watchdog.docker import DockerError, unframed
from services.watchdog.readings import UnreadableError, parse
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
        await output_of(["/no/such"], within_s=5)
    with pytest.raises(CommandError, match="sh ended with code 3: the driver is gone"):
        await output_of(["sh", "-c", "echo the driver is gone >&2; exit 3"], within_s=5)
    with pytest.raises(CommandError, match="false ended with code 1"):
        await run(["false"], within_s=5)


async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with pytest.raises(CommandError, match=r"sh took longer than 0\.5 s"):
        await output_of(["sh", "-c", f"sleep 600 & echo $! > {child}; wait"], within_s=0.5)
    number = int(child.read_text())
    while _runs(number):  # noqa: ASYNC110 - another process ends, of which no event tells
        await asyncio.sleep(0.01)


async def test_a_flood_is_refused_and_does_not_fill_the_memory() -> None:
    flood = f"import sys\nfor _ in range(300): sys.stdout.write('9' * {MOST_BYTES})"
    with pytest.raises(CommandError, match="printed 65536 bytes or more"):
        await output_of([sys.executable, "-c", flood], within_s=60)


async def test_what_a_restart_command_leaves_running_is_left_alone(tmp_path: Path) -> None:
    child = tmp_path / "child"
    await run(["sh", "-c", f"sleep 600 & echo $! > {child}"], within_s=30)
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
