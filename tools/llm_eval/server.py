"""Which model answers, asked of the server itself: what a result is stamped with, and whether it can be asked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, cast

import orjson

from libs.upstreams.config import LEXI, load_entries
from libs.upstreams.errors import ConnectFailed, UpstreamError
from libs.upstreams.exchange import Overdue
from libs.upstreams.heartbeat import OK, REFUSED_KEY, fetch
from libs.upstreams.pool import Upstreams
from libs.upstreams.settings import UpstreamSettings
from libs.upstreams.wire import Wire
from tools.llm_eval.refusal import HarnessFailed, UsageRefused

ANSWER_S = 5.0
EMBEDDED = re.compile(r"smollm2?-135m", re.IGNORECASE)
"""The file of the model that the stack brings along."""
WAY_OUT = "`make lexi` starts the embedded model and `make run` the whole stack; LLM_BASE_URL names another server"
OF_MODEL = ("id", "root", "owned_by", "max_model_len", "meta")
OF_PROPS = ("build_info", "total_slots", "model_ftype")


@dataclass(frozen=True, slots=True)
class Server:
    """The server behind `lexi`. `fingerprint` is JSON; `embedded` says that it is the stack's own small model."""

    base_url: str
    model: str
    dialect: str
    fingerprint: Mapping[str, Any]
    embedded: bool

    @property
    def named(self) -> str:
        """What it is in two words: `vllm 0.19.0`, `llamacpp SmolLM2-135M-Instruct.Q4_1.gguf`."""
        server: Mapping[str, Any] = self.fingerprint["server"]
        return f"{self.dialect} {server.get('version') or server.get('model_file') or ''}".strip()


def require_answering(upstreams: Upstreams, settings: UpstreamSettings) -> None:
    """Refuse to begin where Lexi cannot be asked. Raises `HarnessFailed`, `UsageRefused`."""
    status = next(one for one in upstreams.status() if one.name == LEXI)
    if status.state in {"down", "stuck", "unknown"}:
        raise HarnessFailed(
            f"the model at {settings.llm_base_url} (LLM_BASE_URL) cannot be asked: {status.reason or status.state}. "
            f"{WAY_OUT}. Nothing was asked and nothing written."
        )
    if status.slots == 0:
        raise UsageRefused(f"{settings.upstreams_file}: the role eval has no share of {LEXI}; give it one under shares")


async def meet(upstreams: Upstreams, settings: UpstreamSettings) -> Server:
    """Ask the server who it is. Raises `HarnessFailed` where it serves another model, or refuses the key."""
    entry = load_entries(settings)[LEXI]
    dialect = upstreams.place_of(LEXI).rpartition(" ")[2] or "openai"
    headers = {} if entry.api_key is None else {"authorization": f"Bearer {entry.api_key.get_secret_value()}"}
    wire = Wire(entry.origin, headers=headers)
    try:
        models = await _listed(wire, f"{entry.api_path}/models", entry.base_url)
        version = await _object(wire, f"{entry.root_path}/version", when=dialect == "vllm")
        props = await _object(wire, f"{entry.root_path}/props", when=dialect == "llamacpp")
    finally:
        wire.close()
    names = [str(model.get("id")) for model in models]
    if dialect != "llamacpp" and names and entry.model not in names:
        raise HarnessFailed(f"{entry.base_url} serves {', '.join(names)}, not {entry.model}: set LLM_MODEL")
    file = str(props.get("model_path", "")).rpartition("/")[2]
    said = {name: props.get(name) for name in OF_PROPS}
    said |= {"version": version.get("version"), "model_file": file or None}
    fingerprint: dict[str, Any] = {
        "base_url": entry.base_url,
        "name": entry.model,
        "dialect": dialect,
        "models": [{name: model[name] for name in OF_MODEL if name in model} for model in models],
        "server": {name: value for name, value in said.items() if value is not None},
    }
    embedded = dialect == "llamacpp" and EMBEDDED.search(file) is not None
    return Server(entry.base_url, entry.model, dialect, fingerprint, embedded)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[tuple[str, object, object]]:
    """What two fingerprints say otherwise: its name, as it was, as it is.

    A server may not have said all of it each time: what only one of them knows is no difference.
    """
    known: list[tuple[str, object, object]] = [
        (name, then.get(name), now.get(name)) for name in ("name", "dialect", "models")
    ]
    was: Mapping[str, object] = then.get("server") or {}
    found: Mapping[str, object] = now.get("server") or {}
    both = was.keys() & found.keys()
    known.append(("server", {name: was[name] for name in both}, {name: found[name] for name in both}))
    return [(name, old, new) for name, old, new in known if old and new and old != new]


async def _listed(wire: Wire, path: str, base_url: str) -> list[Mapping[str, Any]]:
    """The models that a server lists; empty where it lists none. Raises `HarnessFailed`."""
    try:
        status, text = await fetch(wire, path, monotonic() + ANSWER_S)
    except (ConnectFailed, Overdue, UpstreamError) as error:
        reason = str(error) or f"no answer within {ANSWER_S:g} s"
        raise HarnessFailed(f"the model at {base_url} (LLM_BASE_URL) cannot be asked: {reason}. {WAY_OUT}") from error
    if status in REFUSED_KEY:
        raise HarnessFailed(f"{base_url} refuses the key ({status}): set LLM_API_KEY to the one it asks for")
    data = _read(status, text).get("data")
    return [cast("dict[str, Any]", one) for one in cast("list[object]", data or []) if isinstance(one, dict)]


async def _object(wire: Wire, path: str, *, when: bool) -> Mapping[str, Any]:
    """The JSON object at a path, empty where there is none; only asked for `when` the dialect has it."""
    if not when:
        return {}
    try:
        return _read(*await fetch(wire, path, monotonic() + ANSWER_S))
    except (Overdue, UpstreamError):
        return {}


def _read(status: int, text: bytes) -> Mapping[str, Any]:
    try:
        content: Any = orjson.loads(text) if status == OK else {}
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}
