"""The sidecar as a user starts it: the curls of its page as they stand there, its refusals, `make sidecar`."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.acceptance.stack import ROOT, eventually, free_ports
from tests.integration.sidecar_app import PROPOSAL, VALID

FOREIGN = ("API_", "DATABASE_", "HERMES_", "LLM_", "MICRO_LLM_", "SIDECAR_")
PAGE = (ROOT / "docs" / "sidecar.md").read_text(encoding="utf-8")
CURLS = [line for line in PAGE.splitlines() if line.startswith("curl ")]
UPSTREAMS = """
upstreams:
  - {name: lexi, dialect: vllm, slots: 8, shares: {sidecar: 8}}
  - {name: hermes, model: Hermes, base_url: "%s", dialect: vllm, slots: 8, shares: {sidecar: 8}}
  - {name: phi3, model: Phi-3, base_url: "%s", dialect: vllm, slots: 8, shares: {sidecar: 8}}
"""


@contextmanager
def engine(model: str, reply: str) -> Generator[str, None, None]:
    """A fake engine in a process of its own: its base address."""
    code = (
        "import asyncio, sys\n"
        "from tests.fakes.engine import FakeEngine\n"
        "async def main():\n"
        "    async with FakeEngine(model=sys.argv[1], reply=sys.argv[2]) as fake:\n"
        "        print(fake.base_url, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, model, reply]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@contextmanager
def program(module: str, log: Path, **settings: str) -> Generator["subprocess.Popen[bytes]", None, None]:
    """A module of ours, ended with the block; what it says goes to `log`."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, env=known | settings, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> str:
    """The body of the first answer with status 200."""

    def look() -> str | None:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            return None

    return eventually(look, what=url, within_s=90)


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Generator[str, None, None]:
    """A running sidecar before two engines: its address."""
    folder = tmp_path_factory.mktemp("sidecar")
    port = free_ports(("SIDECAR_PORT",))["SIDECAR_PORT"]
    with engine("Hermes", "A stop ends a loss.") as hermes, engine("Phi-3", VALID) as phi3:
        (folder / "upstreams.yaml").write_text(UPSTREAMS % (hermes, phi3), encoding="utf-8")
        settings = {
            "UPSTREAMS_FILE": str(folder / "upstreams.yaml"),
            "LOCAL_STATE": str(folder),
            "LLM_BASE_URL": hermes,
            "SIDECAR_PORT": port,
        }
        log = folder / "sidecar.log"
        with program("services.sidecar", log, **settings) as process:
            wait_for(f"http://127.0.0.1:{port}/ready", process, log)
            yield f"http://127.0.0.1:{port}"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert "Traceback" not in log.read_text()


def run(curl: str, url: str) -> str:
    """What a line of the page prints, typed as it stands there but for the port."""
    line = curl.replace("http://127.0.0.1:8000", url)
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60).stdout


def expected(curl: str) -> Any:
    """What the contract says of a line."""
    if "/health" in curl:
        there = {"status": "ok", "hermes_loaded": True, "phi3_loaded": True, "phi3_model_file_exists": True}
        return {**there, "device": "cpu"}
    if '"gpt"' in curl:
        return {"error": "Invalid model_id specified. Choose 'hermes' or 'phi3'.", "specified_model_id": "gpt"}
    if "/propose" in curl:
        return {"phi3_proposal": PROPOSAL, "hermes_assessment": "A stop ends a loss."}
    return PROPOSAL if "phi3" in curl else {"generated_text": "A stop ends a loss."}


def test_the_page_has_a_line_for_every_route() -> None:
    paths = {found[1] for curl in CURLS if (found := re.search(r":8000(/[^ ]*)", curl))}
    assert paths == {
        "/health", "/ready", "/metrics", "/generate/", "/generate/hermes/", "/generate/phi3/",
        "/propose_trade_adjustments/",
    }  # fmt: skip


@pytest.mark.parametrize("curl", [curl for curl in CURLS if not curl.endswith(("/ready", "/metrics"))])
def test_every_curl_answers_as_written(sidecar: str, curl: str) -> None:
    answer = json.loads(run(curl, sidecar))
    wanted = expected(curl)
    if "/health" in curl:
        assert answer.pop("device") in {"cuda", wanted.pop("device")}
    assert answer == wanted


def test_readiness_and_metrics_speak_of_both_models(sidecar: str) -> None:
    ready = run("curl -s http://127.0.0.1:8000/ready", sidecar)
    assert "green  hermes\ngreen  phi3\n" in ready
    run(CURLS[1], sidecar)
    assert 'lexi_sidecar_answers_total{model="hermes",outcome="ok"}' in run(CURLS[-1], sidecar)


def test_open_to_the_network_it_refuses_to_start(tmp_path: Path) -> None:
    port = free_ports(("SIDECAR_PORT",))["SIDECAR_PORT"]
    settings = {"API_HOST": "0.0.0.0", "LOCAL_STATE": str(tmp_path), "SIDECAR_PORT": port}
    with program("services.sidecar", tmp_path / "log", **settings) as process:
        assert process.wait(60) == 2
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("sidecar: API_HOST=0.0.0.0 is not loopback")
    assert "SIDECAR_LEGACY_OPEN=0" in last
    assert "SIDECAR_PUBLISHED_ON_LOOPBACK=1" in last


def test_make_sidecar_uses_the_model_that_is_named_and_ends_with_its_parent(tmp_path: Path) -> None:
    port = free_ports(("SIDECAR_PORT",))["SIDECAR_PORT"]
    log = tmp_path / "log"
    with engine("Lexi", "As Lexi.") as lexi:
        settings = {"LLM_BASE_URL": lexi, "LOCAL_STATE": str(tmp_path / "state"), "SIDECAR_PORT": port}
        with program("tools.local_stack.sidecar", log, **settings) as process:
            wait_for(f"http://127.0.0.1:{port}/ready", process, log)
            eventually(lambda: "Ctrl-C ends it." in log.read_text() or None, what="the lines to try", within_s=60)
            tried = [line.strip() for line in log.read_text().splitlines() if line.strip().startswith("curl")]
            assert json.loads(run(tried[1], "")) == {"generated_text": "As Lexi."}
            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) == 1  # no embedded model beside the one that is named
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
