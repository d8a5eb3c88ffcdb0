"""Which dialect a server speaks, asked of the server itself, for entries with `dialect: auto`.

The list of models names its owner (`vllm`, `llamacpp`); servers that do not are told by routes only they have. What
is neither is spoken to as OpenAI's API.
"""

from dataclasses import dataclass
from typing import Any, cast

import orjson

from libs.upstreams.config import UpstreamEntry
from libs.upstreams.errors import Refused
from libs.upstreams.heartbeat import OK, fetch
from libs.upstreams.types import Dialect
from libs.upstreams.wire import Wire

SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class Nature:
    """What a server is. `slots` is how many requests it serves at once, None where it does not say."""

    dialect: Dialect
    slots: int | None = None


async def detect(wire: Wire, entry: UpstreamEntry, until: float) -> Nature:
    """Ask the server. Raises `ConnectFailed`, `Overdue`, `BrokenStream`, and `Refused` while it is still loading."""
    dialect = entry.dialect if entry.dialect != "auto" else await _dialect(wire, entry, until)
    if dialect != "llamacpp":
        return Nature(dialect)
    slots = (await _object(wire, f"{entry.root_path}/props", until)).get("total_slots")
    return Nature(dialect, slots if isinstance(slots, int) and slots > 0 else None)


async def _dialect(wire: Wire, entry: UpstreamEntry, until: float) -> Dialect:
    models = (await _object(wire, f"{entry.api_path}/models", until, required=True)).get("data")
    listed = cast("list[object]", models) if isinstance(models, list) else []
    owners = {owner for model in listed if isinstance(owner := _member(model, "owned_by"), str)}
    if "vllm" in owners:
        return "vllm"
    if "llamacpp" in owners:
        return "llamacpp"
    if "version" in await _object(wire, f"{entry.root_path}/version", until):
        return "vllm"
    return "llamacpp" if "total_slots" in await _object(wire, f"{entry.root_path}/props", until) else "openai"


def _member(value: object, name: str) -> object:
    return cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None


async def _object(wire: Wire, path: str, until: float, *, required: bool = False) -> dict[str, Any]:
    """The JSON object at a path; empty where there is none. A server's own error there is raised if `required`."""
    status, text = await fetch(wire, path, until)
    if required and status >= SERVER_ERROR:
        raise Refused(f"{path} answered {status}", status=status)
    if status != OK:
        return {}
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}
