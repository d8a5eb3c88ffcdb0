"""`configs/upstreams.yaml`, read and checked once into frozen values."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from libs.strict_yaml import YamlError, read_yaml
from libs.upstreams.settings import UpstreamSettings
from libs.upstreams.types import Dialect, Role

LEXI = "lexi"
FROM_ENVIRONMENT = {
    "base_url": "LLM_BASE_URL",
    "model": "LLM_MODEL",
    "api_key_env": "LLM_API_KEY",
    "context": "LLM_MAX_TOKENS",
}

DialectSetting: TypeAlias = "Dialect | Literal['auto']"


class UpstreamConfigError(Exception):
    """The file of upstreams cannot be used; the message names the file, the entry and the field."""


@dataclass(frozen=True, slots=True)
class UpstreamEntry:
    """One place that answers.

    `slots` is what the engine serves at once, `shares` the most slots one process of a role holds. `context` is the
    window in tokens, None where it is not known. `origin` is `scheme://host:port`; `api_path` the path of the OpenAI
    API on it (`/v1`), `root_path` where the engine's own routes (`/health`, `/metrics`) begin. `queue_tokens` is how
    many estimated tokens may wait for the share of one process, None for a window of `context` a slot.
    """

    name: str
    model: str
    base_url: str
    dialect: DialectSetting
    slots: int
    shares: Mapping[Role, int] = field(default_factory=dict[Role, int])
    context: int | None = None
    api_key: SecretStr | None = None
    fallback: tuple[str, ...] = ()
    queue_tokens: int | None = None

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        parts = urlsplit(self.base_url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def api_path(self) -> str:
        """The path of the OpenAI API, without a slash at its end."""
        return urlsplit(self.base_url).path.rstrip("/")

    @property
    def root_path(self) -> str:
        """The path under which the engine's own routes lie: the API's without its version."""
        return self.api_path.removesuffix("/v1")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    model: str | None = Field(default=None, min_length=1)
    base_url: str | None = None
    dialect: DialectSetting = "auto"
    slots: int = Field(gt=0)
    shares: dict[str, int] = Field(default_factory=dict[str, int])
    context: int | None = Field(default=None, gt=0)
    api_key_env: str | None = None
    fallback: list[str] = Field(default_factory=list[str])
    queue_tokens: int | None = Field(default=None, gt=0)


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid")

    upstreams: list[Any] = Field(min_length=1)


def load_entries(settings: UpstreamSettings) -> dict[str, UpstreamEntry]:
    """Read the file. Raises `UpstreamConfigError` naming file, entry and field."""
    path = settings.upstreams_file
    entries: dict[str, UpstreamEntry] = {}
    for number, raw in enumerate(_read(path)):
        label = _label(number, raw)
        parsed = _parse(path, label, raw)
        if parsed.name in entries:
            raise UpstreamConfigError(f"{path}: entry {label}: name: it is there twice")
        entries[parsed.name] = _resolve(path, parsed, settings)
    if LEXI not in entries:
        raise UpstreamConfigError(f"{path}: entry {LEXI}: name: there is no such entry, and every service needs it")
    for entry in entries.values():
        for name in entry.fallback:
            if name not in entries or name == entry.name:
                raise UpstreamConfigError(f"{path}: entry {entry.name}: fallback: {name!r} is not another entry")
    return entries


def _read(path: Path) -> list[Any]:
    try:
        content = read_yaml(path)
    except YamlError as error:
        raise UpstreamConfigError(f"{path}: {error}") from error
    try:
        return _Head.model_validate(content).upstreams
    except ValidationError as error:
        raise UpstreamConfigError(f"{path}: {_first(error)}") from error


def _label(number: int, raw: object) -> str:
    """What to call an entry in a message: its name, or its place."""
    name = cast("dict[str, object]", raw).get("name") if isinstance(raw, dict) else None
    return str(name) if name else f"#{number + 1}"


def _parse(path: Path, label: str, raw: object) -> _Entry:
    try:
        return _Entry.model_validate(raw)
    except ValidationError as error:
        raise UpstreamConfigError(f"{path}: entry {label}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the whole"
    return f"{where}: {problem['msg']}"


def _resolve(path: Path, entry: _Entry, settings: UpstreamSettings) -> UpstreamEntry:
    where = f"{path}: entry {entry.name}"
    roles = get_args(Role)
    for role, share in entry.shares.items():
        if role not in roles:
            raise UpstreamConfigError(f"{where}: shares.{role}: no such role; there are {', '.join(roles)}")
        if not 0 <= share <= entry.slots:
            raise UpstreamConfigError(f"{where}: shares.{role}: {share} is not between 0 and slots ({entry.slots})")
    if entry.name == LEXI:
        for name, variable in FROM_ENVIRONMENT.items():
            if getattr(entry, name) is not None:
                raise UpstreamConfigError(f"{where}: {name}: the entry lexi takes it from {variable}")
        base_url, model, context, key = (
            settings.llm_base_url,
            settings.llm_model,
            settings.llm_max_tokens,
            settings.llm_api_key,
        )
        where = "LLM_BASE_URL"
    else:
        if entry.model is None or entry.base_url is None:
            missing = "model" if entry.model is None else "base_url"
            raise UpstreamConfigError(f"{where}: {missing}: it is required")
        base_url, model, context = entry.base_url, entry.model, entry.context
        key = _key(where, entry.api_key_env)
        where = f"{where}: base_url"
    _check_address(where, base_url)
    if key is not None and not (key.get_secret_value().isascii() and key.get_secret_value().isprintable()):
        variable = "LLM_API_KEY" if entry.name == LEXI else entry.api_key_env
        raise UpstreamConfigError(f"{path}: entry {entry.name}: the key in {variable} holds what no header can")
    return UpstreamEntry(
        name=entry.name,
        model=model,
        base_url=base_url,
        dialect=entry.dialect,
        slots=entry.slots,
        shares=cast("dict[Role, int]", dict(entry.shares)),
        context=context,
        api_key=key,
        fallback=tuple(entry.fallback),
        queue_tokens=entry.queue_tokens,
    )


def _check_address(where: str, base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise UpstreamConfigError(f"{where}: {error}") from error
    if not usable or not base_url.isascii() or any(character.isspace() for character in base_url):
        raise UpstreamConfigError(f"{where}: not an http or https address: {base_url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UpstreamConfigError(f"{where}: user names, passwords, queries and fragments do not belong in the address")


def _key(where: str, variable: str | None) -> SecretStr | None:
    """The key from the variable named by `api_key_env`, or from the file that `<variable>_FILE` points to."""
    if variable is None:
        return None
    value, file = os.environ.get(variable), os.environ.get(f"{variable}_FILE")
    if not value and file:
        try:
            value = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UpstreamConfigError(f"{where}: api_key_env: {variable}_FILE cannot be read: {error}") from error
    if not value:
        raise UpstreamConfigError(f"{where}: api_key_env: neither {variable} nor {variable}_FILE is set")
    return SecretStr(value)
