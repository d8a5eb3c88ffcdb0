"""Settings from the environment: one base class, strict flags, secrets from files, errors that name the variable.

Settings classes live beside the code that reads them, derive from `Settings`, and are built by `load()` at start,
never on import.
"""

import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off"})


class SettingsError(Exception):
    """A variable of the environment cannot be read; the message names it."""


def parse_flag(value: object) -> bool:
    """Read a flag: 1/true/yes/on or 0/false/no/off, nothing else."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError("a flag is 1/true/yes/on or 0/false/no/off")


Flag = Annotated[bool, BeforeValidator(parse_flag)]


class SecretFileSource(PydanticBaseSettingsSource):
    """Reads each secret `NAME` from the file that `NAME_FILE` points to, where `NAME` itself is not set.

    An empty file counts as unset, as an empty variable does.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = environment_name(self.settings_cls, field_name)
        path = os.environ.get(f"{name}_FILE")
        if not path or not is_secret(field):
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip() or None, field_name, False
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{name}_FILE: cannot read {path}: {error}") from error

    def __call__(self) -> dict[str, Any]:
        values = (
            (name, self.get_field_value(field, name)[0]) for name, field in self.settings_cls.model_fields.items()
        )
        return {name: value for name, value in values if value is not None}


class Settings(BaseSettings):
    """Base of every settings class. An empty variable counts as unset."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then files named by `NAME_FILE`."""
        return init_settings, env_settings, SecretFileSource(settings_cls)


def environment_name(settings: type[BaseSettings], field_name: str) -> str:
    """The environment variable that fills a field, e.g. `LLM_BASE_URL`."""
    return f"{settings.model_config.get('env_prefix', '')}{field_name}".upper()


def is_secret(field: FieldInfo) -> bool:
    """Whether a field holds a secret, and so is also read from `NAME_FILE` and never printed."""
    return "SecretStr" in str(field.annotation) or field.annotation is SecretStr


S = TypeVar("S", bound=Settings)


def load(settings: type[S], **overrides: Any) -> S:
    """Build a settings object from the environment.

    Raises `SettingsError` with one line per unreadable variable. Values of secrets are left out of the message.
    """
    try:
        return settings(**overrides)
    except ValidationError as error:
        lines: list[str] = []
        for problem in error.errors(include_url=False):
            field = str(problem["loc"][0]) if problem["loc"] else ""
            name = environment_name(settings, field)
            known = settings.model_fields.get(field)
            shown = "" if known is None or is_secret(known) else f"={problem['input']!r}"
            lines.append(f"{name}{shown}: {problem['msg']}")
        raise SettingsError("\n".join(lines)) from error
