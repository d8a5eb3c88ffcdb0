"""The candidates: each one process with one worker on one core, in front of the same upstream."""

import json
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.gateway.machine import WORKER_CORE, free_port, start
from bench.gateway.peers import LITELLM, ROUTER, NotMeasured, environment, nginx
from libs.keys import digest
from tools.local_stack.children import end

OURS = "lexi"
DIRECT = "direct"
PEERS = ("vllm-router", "nginx", "litellm")
MOST_START_S = 90
LIMITS = {"requests_per_minute": 100_000_000, "tokens_per_minute": 100_000_000_000, "concurrent": 10_000}
UPSTREAMS = """
upstreams:
  - {name: lexi, dialect: vllm, slots: 64, shares: {api: 64}}
"""
NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port}; keepalive_requests 100000000;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""
LITELLM_CONFIG = """
model_list:
  - model_name: Lexi
    litellm_params: {{model: hosted_vllm/Lexi, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A process that answers on a port. `direct` has none: there the port is the upstream's own."""

    name: str
    port: int
    key: str = "none"
    process: "subprocess.Popen[bytes] | None" = None
    log_path: Path | None = None

    @property
    def pid(self) -> int:
        """Its process; of a candidate that is one."""
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        """Ask it to end, and wait until it has: ours stores its last rows then."""
        if self.process is not None:
            end(self.process, with_signal=signal.SIGTERM, grace_s=30)

    def wait(self, path: str) -> None:
        """Return when `path` answers 200. Raises `NotMeasured` with the end of its log."""
        assert self.process is not None
        started = time.monotonic()
        while self.process.poll() is None and time.monotonic() - started < MOST_START_S:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise NotMeasured(f"{self.name} did not start:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of its log, which is gone with the bench."""
        if self.log_path is None:
            return ""
        return "\n".join(self.log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:])


def start_ours(folder: Path, upstream: int, *, database: str) -> Candidate:
    """`python -m services.api` with a key that has limits, accounting to a database, and nothing switched off."""
    token = "lexi_" + secrets.token_urlsafe(32)
    entry = {"name": "bench", "sha256": digest(token), "scopes": ["infer"], "limits": LIMITS}
    (folder / "keys.json").write_text(json.dumps([entry]), encoding="utf-8")
    (folder / "upstreams.yaml").write_text(UPSTREAMS, encoding="utf-8")
    port = free_port()
    environment_of_ours = {
        "API_PORT": str(port),
        "API_HOST": "127.0.0.1",
        "API_KEYS_FILE": str(folder / "keys.json"),
        "DATABASE_URL": database,
        "LOCAL_STATE": str(folder / "state"),
        "UPSTREAMS_FILE": str(folder / "upstreams.yaml"),
        "LLM_BASE_URL": f"http://127.0.0.1:{upstream}/v1",
        "LLM_MODEL": "Lexi",
    }
    command = [sys.executable, "-m", "services.api"]
    return launched(OURS, folder, command=command, port=port, ready="/ready", key=token, env=environment_of_ours)


def start_router(folder: Path, upstream: int) -> Candidate:
    """vLLM's router as it is run, with its breaker, retries and metrics."""
    program = environment("vllm-router", ROUTER) / "vllm-router"
    port = free_port()
    words = [str(program), "--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    return launched("vllm-router", folder, command=words, port=port, ready="/health")


def start_nginx(folder: Path, upstream: int) -> Candidate:
    """nginx as a reverse proxy that does nothing else, with connections kept on both sides."""
    program, port = nginx(), free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, upstream=upstream, port=port), encoding="utf-8")
    words = [str(program), "-c", str(config), "-p", str(folder), "-e", "stderr"]
    return launched("nginx", folder, command=words, port=port, ready="/health")


def start_litellm(folder: Path, upstream: int) -> Candidate:
    """LiteLLM's proxy with one worker and one model, no database, no keys."""
    program, port = environment("LiteLLM", LITELLM) / "litellm", free_port()
    config = folder / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(upstream=upstream), encoding="utf-8")
    words = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it fetches its price list at the start
    return launched("litellm", folder, command=words, port=port, ready="/health/liveliness", env=env)


STARTS: dict[str, Callable[[Path, int], Candidate]] = {
    "vllm-router": start_router,
    "nginx": start_nginx,
    "litellm": start_litellm,
}


def launched(
    name: str,
    folder: Path,
    *,
    command: list[str],
    port: int,
    ready: str,
    key: str = "none",
    env: dict[str, str] | None = None,
) -> Candidate:
    """Start a candidate and wait for it. Raises `NotMeasured`; nothing is left running then."""
    log_path = folder / f"{name}.log"
    process = start(command, log_path, core=WORKER_CORE, env=env)
    candidate = Candidate(name, port, key, process, log_path)
    try:
        candidate.wait(ready)
    except BaseException:
        candidate.stop()
        raise
    return candidate
