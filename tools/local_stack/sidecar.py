"""`make sidecar`: the older interface over the model that is here.

The model is the one that `LLM_BASE_URL` names, else the embedded one: that of a `make run` or `make lexi` beside this,
or one of its own that ends with it.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping

from libs.service_settings import ListenSettings
from libs.settings import SettingsError, load
from services.sidecar.settings import SidecarConfigError, SidecarSettings, check_reach
from tools.local_stack.__main__ import Stopped, say, stop_on_signals
from tools.local_stack.plan import EMBEDDED_MODEL_DEFAULTS, Service, StackSettings, model_server
from tools.local_stack.supervise import StackError, Supervised, readiness, require_free_port, stop_all


def environment(settings: StackSettings) -> Mapping[str, str]:
    """The environment of both processes: the caller's, with the embedded model filled in where it is the one."""
    given = {name: value for name, value in os.environ.items() if value}
    known = {"LOCAL_STATE": str(settings.local_state.resolve()), "PYTHONUNBUFFERED": "1"}
    if settings.llm_base_url is None:
        known["LLM_BASE_URL"] = f"http://127.0.0.1:{settings.lexi_port}/v1"
        given = EMBEDDED_MODEL_DEFAULTS | given
    return given | known


def programs(settings: StackSettings, listen: ListenSettings, sidecar: SidecarSettings) -> list[Service]:
    """What is to be started, in order. Raises `StackError` where a port is taken by somebody else."""
    own = Service("sidecar", "services.sidecar", listen.api_host, sidecar.sidecar_port, "SIDECAR_PORT")
    require_free_port(own)
    model = model_server(settings)
    if model is None or readiness(model) is None:
        return [own]
    require_free_port(model)
    return [model, own]


def banner(url: str, *, model: str) -> str:
    """What runs, and lines to try."""
    body = "-H 'Content-Type: application/json' -d"
    return f"""
The sidecar is up at {url}, over {model}.

Try:
  curl -s {url}/health
  curl -s {url}/generate/ {body} '{{"prompt": "What is a stop?", "max_length": 64, "model_id": "hermes"}}'
  curl -s {url}/generate/phi3/ {body} '{{"prompt": "AAPL is up 4% since the entry. Adjust the stop?"}}'
  curl -s {url}/propose_trade_adjustments/ {body} '{{"prompt": "AAPL is up 4% since the entry."}}'

Ctrl-C ends it."""


def run(started: list[Supervised], report: Callable[[str], None]) -> None:
    """Start everything and keep it alive until a signal ends it."""
    settings, listen, sidecar = load(StackSettings), load(ListenSettings), load(SidecarSettings)
    check_reach(sidecar, listen.api_host)
    env = environment(settings)
    logs = settings.local_state.resolve() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    wanted = programs(settings, listen, sidecar)
    for program in wanted:
        report(f"starting {program.name} …")
        process = Supervised(program, env=env, logs=logs, report=report)
        started.append(process)
        process.start()
        process.wait_until_ready()
    report(banner(wanted[-1].url, model=env["LLM_BASE_URL"]))
    while True:
        for process in started:
            process.keep_alive()
        time.sleep(0.5)


def main() -> int:
    """Run until a signal; 0 after a clean stop, 2 when it could not start."""
    stop_on_signals()
    started: list[Supervised] = []
    try:
        run(started, say)
    except Stopped as signalled:
        say(f"\n{signalled}: stopping …")
        return 0
    except (StackError, SettingsError, SidecarConfigError) as error:
        say(f"\ncannot start: {error}")
        return 2
    finally:
        stop_all(started[::-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
