"""The life of a process: signals, clear refusals, and logs that keep secrets."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from libs.telemetry import mask_text

ROOT = Path(__file__).parents[2]

PROLOGUE = """
import asyncio, sys
import structlog
from libs import process
from libs.probes import probe_app
log = structlog.get_logger("test")
"""

SERVES = (
    PROLOGUE
    + """
async def main(stop):
    await process.serve(probe_app({}), host="127.0.0.1", port=int(sys.argv[1]), stop=stop, variable="API_PORT")
    print("ended", flush=True)
process.run(main, service="probe")
"""
)


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE + code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@contextmanager
def started(code: str, *arguments: str) -> Generator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def listening_port(process: subprocess.Popen[str]) -> int:
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "listening":
            return int(event["port"])
    raise AssertionError("it ended without listening")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_gracefully(number: signal.Signals) -> None:
    with started(SERVES, "0") as process:
        port = listening_port(process)
        answer = httpx.get(f"http://127.0.0.1:{port}/health", headers={"Authorization": "Bearer abc"})
        assert answer.status_code == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == "ended\n"
    assert "abc" not in err


SLOW = (
    PROLOGUE
    + """
from fastapi import FastAPI
from libs.http_app import Edge
app = FastAPI()
@app.get("/slow")
async def slow():
    print("asked", flush=True)
    await asyncio.sleep(600)
process.DRAIN_S = 0
async def main(stop):
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(process.serve(Edge(app, max_body_bytes=9), host="127.0.0.1", port=0, stop=stop))
process.run(main, service="probe")
"""
)


def test_a_request_cut_by_the_stop_gets_a_problem_and_leaves_no_traceback() -> None:
    with started(SLOW) as process, ThreadPoolExecutor() as pool:
        port = listening_port(process)
        asked = pool.submit(httpx.get, f"http://127.0.0.1:{port}/slow", timeout=60)
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        answer = asked.result()
        _, err = process.communicate(timeout=30)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert "stopping" in answer.json()["detail"]
    assert "x-request-id" in answer.headers
    assert process.returncode == 0
    assert "Traceback" not in err
    assert "request_cut_by_the_stop" in err


def test_a_start_that_fails_beside_its_server_says_one_line_and_no_traceback() -> None:
    code = (
        "from libs.settings import SettingsError\n"
        "async def work():\n    await asyncio.sleep(0.2)\n    raise SettingsError('LLM_X: wrong')\n"
        "async def main(stop):\n    async with asyncio.TaskGroup() as tasks:\n"
        "        tasks.create_task(process.serve(probe_app({}), host='127.0.0.1', port=0, stop=stop))\n"
        "        tasks.create_task(work())\n"
        "process.run(main, service='probe')"
    )
    ended = run(code)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "probe: LLM_X: wrong"
    assert "Traceback" not in ended.stderr


def test_a_second_signal_ends_what_does_not_listen_to_the_first() -> None:
    code = PROLOGUE + (
        "async def main(stop):\n    print('up', flush=True)\n    await stop.wait()\n    print('told', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "process.run(main, service='probe')"
    )
    with started(code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "told\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["stopping", "cancelled_by_second_signal"]


def test_what_overruns_its_grace_is_said_to_have_overrun() -> None:
    code = (
        "process.GRACE_S = 0.1\n"
        "async def main(stop):\n    import os, signal\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    await asyncio.sleep(600)\n"
        "process.run(main, service='probe')"
    )
    ended = run(code)
    assert ended.returncode == 0
    assert [json.loads(line)["event"] for line in ended.stderr.splitlines()] == ["stopping", "grace_ran_out"]


def test_a_taken_port_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started(SERVES, str(port)) as process:
            _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = err.splitlines()
    assert line.startswith(f"probe: cannot listen on 127.0.0.1:{port}")
    assert "API_PORT" in line


@pytest.mark.parametrize(
    "failure",
    [
        "from libs.settings import SettingsError; raise SettingsError('LLM_X: wrong')",
        "from libs.db.engine import DatabaseError; raise DatabaseError('LLM_X: wrong')",
        "raise ConnectionRefusedError('LLM_X: wrong')",
        "from libs.settings import SettingsError\n    raise ExceptionGroup('g', [SettingsError('LLM_X: wrong')])",
    ],
)
def test_what_a_person_can_mend_is_one_line_and_exit_2(failure: str) -> None:
    ended = run(f"async def main(stop):\n    {failure}\nprocess.run(main, service='probe')")
    assert ended.returncode == 2
    assert re.fullmatch(r"probe: .*LLM_X: wrong\n", ended.stderr)


def test_a_bug_is_logged_with_its_traceback_and_exits_1() -> None:
    ended = run("async def main(stop):\n    {}['missing']\nprocess.run(main, service='probe')")
    assert ended.returncode == 1
    event = json.loads(ended.stderr)
    assert (event["event"], event["service"]) == ("crashed", "probe")
    assert "KeyError: 'missing'" in event["exception"]


def test_a_refusal_does_not_print_passwords() -> None:
    ended = run(
        "async def main(stop):\n"
        "    raise OSError('cannot reach postgresql://lexi:hunter2@db/lexi')\n"
        "process.run(main, service='probe')"
    )
    assert ended.stderr == "probe: OSError: cannot reach postgresql://lexi:***@db/lexi\n"


def test_logs_are_json_lines_without_secrets() -> None:
    ended = run(
        "import logging\n"
        "async def main(stop):\n"
        "    local = 'hunter2'\n"
        "    log.info('started', api_key='hunter2', url='postgresql://u:hunter2@h/d', header='Bearer hunter2')\n"
        "    logging.getLogger('some.library').warning('odd %s', 'thing')\n"
        "    log.debug('too_fine')\n"
        "    try:\n        1 / 0\n    except ZeroDivisionError:\n        log.exception('failed')\n"
        "process.run(main, service='probe')"
    )
    assert ended.returncode == 0
    assert "hunter2" not in ended.stderr
    events = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [event["event"] for event in events] == ["started", "odd thing", "failed"]
    assert {event["service"] for event in events} == {"probe"}
    assert "ZeroDivisionError" in events[2]["exception"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("the key lexi_0123456789abcdefXYZ-_ was wrong", "the key *** was wrong"),
        ("postgresql://u:p@h/d?x=y", "postgresql://u:***@h/d?x=y"),
        ("http://127.0.0.1:8008/v1", "http://127.0.0.1:8008/v1"),
        ("lexi_llm_health_ok", "lexi_llm_health_ok"),
    ],
)
def test_secrets_inside_texts_are_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked
