"""The spool's files: order, cap, torn lines."""

import tempfile
from pathlib import Path

import orjson
from hypothesis import given
from hypothesis import strategies as st

from libs.llm.call_record import new_call_id, time_of
from libs.llm.spool import Spool, read_segment


def line(number: int, *, size: int = 0) -> bytes:
    call_id = new_call_id()
    row = {"ts": time_of(call_id).isoformat(), "id": str(call_id), "number": number, "reply": "x" * size}
    return orjson.dumps(row)


def numbers(spool: Spool) -> list[int]:
    return [row["number"] for path in spool.seal() for rows, _ in read_segment(path, size=3) for row in rows]


def torn(spool: Spool) -> int:
    return sum(count for path in spool.seal() for _, count in read_segment(path, size=3))


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "forecast")
    assert not spool.waiting()
    assert spool.append([line(n) for n in range(5)]) == 0
    assert spool.waiting()
    assert len(spool.seal()) == 1
    spool.append([line(5)])
    assert numbers(spool) == [0, 1, 2, 3, 4, 5]
    for path in spool.segments():
        spool.delete(path)
    assert not spool.waiting()


def test_another_process_of_the_service_finds_the_lines(tmp_path: Path) -> None:
    Spool(tmp_path, "forecast").append([line(1)])
    Spool(tmp_path, "forecast").append([line(2)])
    assert numbers(Spool(tmp_path, "forecast")) == [1, 2]
    assert numbers(Spool(tmp_path, "api")) == []


def test_over_the_cap_the_oldest_lines_go_and_are_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "forecast", cap_bytes=20_000)
    lost = sum(spool.append([line(n, size=1000)]) for n in range(100))
    left = numbers(spool)
    assert lost + len(left) == 100
    assert left == list(range(lost, 100))
    assert 0 < sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) <= 20_000


def test_a_torn_line_is_skipped_and_costs_no_other(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "forecast")
    spool.append([line(1), line(2)])
    with (tmp_path / "forecast.jsonl").open("ab") as file:
        file.write(line(3)[:40])
    spool.append([line(4)])
    assert numbers(spool) == [1, 2, 4]
    assert torn(spool) == 1


@given(st.lists(st.binary(max_size=40)))
def test_no_content_makes_the_reading_fail(contents: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), "forecast")
        spool.append([line(1), *(content.replace(b"\n", b"") for content in contents), line(2)])
        assert numbers(spool) == [1, 2]
