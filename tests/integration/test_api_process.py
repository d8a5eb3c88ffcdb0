"""Both services as processes: they start, answer, end on a signal, and say in a line why they cannot start."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from libs.keys import ensure_operator_key
from libs.process import explain
from libs.service_settings import ListenSettings
from libs.settings import load
from services.api.app import open_app
from services.api.settings import ApiSettings
from tests.integration.api_app import environment
from tools.local_stack.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
NO_MODEL = "http://127.0.0.1:9/v1"
PORTS = {"api": "API_PORT", "analytics": "ANALYTICS_PORT"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


@contextmanager
def service(name: str, **settings: str) -> Generator[subprocess.Popen[str], None, None]:
    process = subprocess.Popen(
        [sys.executable, "-m", f"services.{name}"],
        cwd=ROOT,
        env={**os.environ, **settings},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], url: str) -> httpx.Response:
    """The first answer; a process that ended instead fails the test with its last words."""
    while process.poll() is None:
        try:
            return httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("name", PORTS)
def test_a_service_starts_without_its_model_answers_and_ends_on_a_signal(
    name: str, database_url: str, tmp_path: Path
) -> None:
    port = free_port()
    token = ensure_operator_key(tmp_path / "keys.json", tmp_path)
    settings = environment(database_url, NO_MODEL, tmp_path, **{PORTS[name]: str(port)})
    with service(name, **settings) as process:
        ready = wait_for(process, f"http://127.0.0.1:{port}/ready")
        assert ready.status_code == 200
        assert "yellow lexi" in ready.text
        path = "/signals/latest" if name == "api" else "/analytics/recent?ticker=AAPL"
        answer = httpx.get(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200
        assert "lexi_http_requests_total" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert token not in err
    assert "ticker=AAPL" not in err


def test_a_taken_port_is_one_line_and_exit_2(database_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = environment(database_url, NO_MODEL, tmp_path, API_PORT=str(port))
        with service("api", **settings) as process:
            _, err = process.communicate(timeout=60)
    last = err.splitlines()[-1]
    assert process.returncode == 2, err
    assert last.startswith(f"api: cannot listen on 127.0.0.1:{port}")
    assert "API_PORT" in last
    assert "Traceback" not in err


async def test_whatever_is_wrong_at_the_start_is_named(
    monkeypatch: pytest.MonkeyPatch, postgres: EmbeddedPostgres, database_url: str, tmp_path: Path
) -> None:
    wrongs = {
        "LLM_CONNECT_TIMEOUT_S='soon'": {"LLM_CONNECT_TIMEOUT_S": "soon"},
        "LLM_SHADOW_MODE='maybe'": {"LLM_SHADOW_MODE": "maybe"},
        "DATABASE_URL": {"DATABASE_URL": "mysql://x"},
        "libs.db migrate": {"DATABASE_URL": postgres.url()},
        "127.0.0.1:9, database x": {"DATABASE_URL": "postgresql://u:hidden@127.0.0.1:9/x"},
        "no_such_database": {"DATABASE_URL": postgres.url("no_such_database")},
        "nothing.yaml": {"PROMPTS_FILE": "nothing.yaml"},
        "gone.yaml": {"UPSTREAMS_FILE": "gone.yaml"},
        "9.9.9": {"LLM_AB_BUCKETS": "policy:9.9.9"},
    }
    for named, wrong in wrongs.items():
        with monkeypatch.context() as patch:
            for name, value in {**environment(database_url, NO_MODEL, tmp_path), **wrong}.items():
                patch.setenv(name, value)
            line = await refusal()
        assert line is not None, f"a bug rather than a refusal: {named}"
        assert named in line
        assert "hidden" not in line


async def refusal() -> str | None:
    """What `run` would print when the control plane cannot be opened."""
    with pytest.raises(Exception) as caught:
        async with open_app(load(ListenSettings), load(ApiSettings)):
            pass
    return explain(caught.value)
