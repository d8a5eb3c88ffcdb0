"""What `make run` tells the person who typed it."""

import json
import os
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from libs.trading.broker.address import PAPER
from tools.local_stack.plan import STRATEGY, StackSettings

ASK_EVERY_S = 2.0


def started(settings: StackSettings, *, key_file: str, key: str, took_s: float) -> str:
    """The overview after the start: what runs where, the operator's key, and five lines to try."""
    model_says = "" if model_answers(settings) else "The model does not answer yet: forecasts come without its word. "
    api, analytics = f"http://127.0.0.1:{settings.api_port}", f"http://127.0.0.1:{settings.analytics_port}"
    model = (
        settings.llm_base_url
        or f"http://127.0.0.1:{settings.lexi_port}/v1  (embedded SmolLM2-135M: real, small, unwise)"
    )
    url_file = f"{shown(settings.local_state)}/database.url"
    database = "DATABASE_URL" if settings.database_url else f'embedded: make psql, or psql "$(cat {url_file})"'
    auth = f'-H "Authorization: Bearer $(cat {key_file})"'
    return f"""
Lexi Gateway is up after {took_s:.0f} s.

  model      {model}
  api        {api}        (OpenAI clients: /v1; /health, /ready, /metrics)
  console    {analytics}/        (sign in with the operator key below; /analytics is here too)
  forecast   http://127.0.0.1:{settings.forecast_metrics_port}/ready
  jobs       http://127.0.0.1:{settings.jobs_metrics_port}/ready
  broker     {broker(settings)}
  strategy   {strategy(settings)}
  postgres   {database}
  logs       {shown(settings.local_state)}/logs

  operator key  {key}   (also in {key_file})

Try:
  curl -s {api}/llm/health
  curl -s {auth} {api}/signals/latest
  curl -s {auth} {api}/llm/chat -H 'Content-Type: application/json' -d '{{"user": "What is a limit order?"}}'
  curl -s {auth} '{api}/llm/admin/stats?hours=24'
  curl -s {auth} '{analytics}/analytics/recent?ticker=AAPL'
  curl -s {auth} '{api}/strategist/recent?limit=3'
  curl -s {auth} {api}/strategist/positions
  curl -s {auth} {analytics}/analytics/shadow

Verdicts are logged and orders pass (LLM_SHADOW_MODE); `make shadow-off REASON=…` lets the policy act.
`make panic` leaves the account flat and stops entries, with everything else down too; `make rearm` lets them in again.
Ctrl-C ends everything. {model_says}Waiting for the first judged forecast …"""


def broker(settings: StackSettings) -> str:
    """Where orders go."""
    address = settings.address()
    return f"{address.base_url}  ({'paper: no money moves' if address.name == PAPER else address.name})"


def strategy(settings: StackSettings) -> str:
    """Whether the example trades, and where to read what it does."""
    if not settings.runs_strategy:
        return "none (EXAMPLE_STRATEGY is off, or the broker is not the paper one)"
    return f"examples/follow_signal.py trades on paper; see {shown(settings.local_state)}/logs/{STRATEGY}.log"


def model_answers(settings: StackSettings) -> bool:
    """Whether the api has seen the model up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.api_port}/ready", timeout=5) as answer:
            return "green  lexi" in answer.read().decode()
    except OSError:
        return False


def shown(path: Path) -> str:
    """A path as one would type it here."""
    absolute = path.resolve()
    return os.path.relpath(absolute) if absolute.is_relative_to(Path.cwd()) else str(absolute)


class FirstForecast:
    """Watches for the first forecast stored since the start that carries the model's policy, and says so once."""

    def __init__(self, settings: StackSettings, key: str) -> None:
        self._request = urllib.request.Request(
            f"http://127.0.0.1:{settings.api_port}/signals/latest", headers={"Authorization": f"Bearer {key}"}
        )
        self._started = time.monotonic()
        self._since = datetime.now(UTC)
        self._ask_at = 0.0
        self._done = False

    def report(self, say: Callable[[str], None]) -> None:
        """Call often; asks the api every two seconds until there is something to tell."""
        now = time.monotonic()
        if self._done or now < self._ask_at:
            return
        self._ask_at = now + ASK_EVERY_S
        try:
            with urllib.request.urlopen(self._request, timeout=2) as answer:  # noqa: S310
                signals: list[dict[str, Any]] = json.loads(answer.read())
        except (OSError, ValueError):
            return
        for signal in signals:
            llm: dict[str, Any] | None = signal["llm"]
            fresh = datetime.fromisoformat(signal["ts"]) >= self._since
            if fresh and llm and llm["policy"]["status"] == "ok" and llm["rationale"]["status"] == "ok":
                self._done = True
                say(_sentence(signal, after_s=now - self._started))
                return


def _sentence(signal: dict[str, Any], *, after_s: float) -> str:
    policy, rationale = signal["llm"]["policy"], signal["llm"]["rationale"]
    decision = "allow" if policy["decision"]["allow"] else "deny"
    return (
        f"First judged forecast after {after_s:.0f} s: {signal['ticker']} as of {signal['as_of']}: "
        f"{signal['mean']:.2f} ({signal['lower']:.2f} to {signal['upper']:.2f}), policy {decision}, "
        f"rules {'allow' if policy['rules']['allow'] else 'deny ' + ', '.join(policy['rules']['reasons'])}.\n"
        f"  rationale: {rationale['text'][:160]}"
    )
