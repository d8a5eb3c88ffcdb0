"""The id that goes along with work: through tasks, in log lines, in the rows of calls; and a bound on lines."""

import asyncio
import io
import json
import logging
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import structlog
from pgqueuer.models import Job

from libs import telemetry
from libs.telemetry import AFew, Origin, bound_id, current_id, new_id
from services.jobs.queue import GiveBack, runner


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Generator[io.StringIO]:
    """What this process logs."""
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    telemetry.configure("test")
    structlog.configure(cache_logger_on_first_use=False)  # or loggers would keep writing here after this test
    yield said
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def said(lines: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


async def test_the_id_goes_along_into_tasks_and_ends_with_its_block() -> None:
    async def look() -> str:
        return current_id()

    with bound_id("one"):
        inside = asyncio.create_task(look())
        with bound_id("two"):
            assert current_id() == "two"
        assert current_id() == "one"
    assert (await inside, current_id()) == ("one", "")


def test_every_line_of_ours_and_of_libraries_carries_it(lines: io.StringIO) -> None:
    with bound_id("one"):
        structlog.get_logger("ours").info("hello")
        logging.getLogger("theirs").warning("hello")
        structlog.get_logger("ours").info("named", request_id="another")
    structlog.get_logger("ours").info("alone")
    assert [line.get("request_id") for line in said(lines)] == ["one", "one", "another", None]


def test_bodies_and_keys_are_masked_by_the_names_of_their_fields(lines: io.StringIO) -> None:
    secrets = {"token": "s3cret", "body": "s3cret", "messages": ["s3cret"], "cookie": "s3cret", "key": "s3cret"}
    structlog.get_logger("ours").info("told", **secrets, url="http://ann:s3cret@host/", said="Bearer s3cret")
    assert "s3cret" not in lines.getvalue()


def test_what_follows_elsewhere_takes_its_origin_along(lines: io.StringIO) -> None:
    with bound_id("tick-1"):
        origin = Origin.here()
    with bound_id("another"), origin.span("judge"):
        structlog.get_logger("ours").info("judged")
    assert said(lines)[0]["request_id"] == "tick-1"


def a_job() -> Job:
    now = datetime.now(UTC)
    return Job.model_construct(
        id=7, priority=0, created=now, heartbeat=now, execute_after=now, updated=now, status="picked",
        entrypoint="x", payload=b"", queue_manager_id=uuid4(), headers=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [(None, "done"), (GiveBack(timedelta(seconds=1)), "given_back"), (ValueError("no"), "failed")],
)
async def test_each_run_of_a_job_has_an_id_and_a_line(lines: io.StringIO, ends: Exception | None, outcome: str) -> None:
    seen = list[str]()

    async def work(_payload: bytes) -> None:
        seen.append(current_id())
        if ends is not None:
            raise ends

    for _ in range(2):
        if ends is None:
            await runner("tidy", work)(a_job())
        else:
            with pytest.raises(type(ends)):
                await runner("tidy", work)(a_job())
    told = said(lines)
    assert [line["request_id"] for line in told] == seen
    assert len(set(seen)) == 2
    assert all(one.startswith("job-") for one in seen)
    assert {(line["event"], line["job"], line["outcome"], line["job_id"]) for line in told} == {
        ("job_ended", "tidy", outcome, "7")
    }


def test_new_ids_name_their_kind_and_never_come_twice() -> None:
    ids = {new_id("tick") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(one.startswith("tick-") for one in ids)


def test_a_flood_of_lines_is_bounded_by_the_second_and_what_was_left_out_is_counted() -> None:
    now = 5.0
    few = AFew(3, clock=lambda: now)
    assert [few.may() for _ in range(5)] == [True, True, True, False, False]
    now = 6.0
    assert few.may()
    assert (few.forget_unsaid(), few.forget_unsaid()) == (2, 0)
