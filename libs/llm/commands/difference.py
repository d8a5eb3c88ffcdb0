"""`diff`: what differs between two versions, in their words and in what the model is sent."""

import asyncio
import difflib
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from sqlalchemy.exc import SQLAlchemyError

from libs.db.engine import DatabaseError
from libs.llm.commands.evidence import StoredInputs, stored_inputs
from libs.llm.commands.refusal import CommandRefused
from libs.llm.commands.showing import messages_of, read_inputs
from libs.llm.errors import InputsRefused, RenderFailed
from libs.llm.registry import Registry
from libs.llm.types import PromptVersion
from libs.process import explain
from libs.settings import SettingsError

USUAL_SAMPLES = 1
"""How many stored inputs are rendered where nobody says."""


def diff(options: Namespace) -> list[str]:
    """Text, schemas and sampling, then both versions rendered with the same variables."""
    registry = Registry.load_unlocked(options.file)
    versions = [registry.version(options.key, number) for number in (options.old, options.new)]
    return [*_unified(versions, _as_text), *_rendered(options, registry, versions)]


def _rendered(options: Namespace, registry: Registry, versions: Sequence[PromptVersion]) -> list[str]:
    if options.inputs is not None:
        return _rendered_with(registry, versions, read_inputs(options.inputs), name=options.inputs)
    if options.stored == 0:
        return []
    known = bool(os.environ.get("DATABASE_URL") or os.environ.get("DATABASE_URL_FILE"))
    if options.stored is None and not known:
        return ["", "# not rendered: give --inputs FILE, or name a database in DATABASE_URL for stored inputs"]
    try:
        found = asyncio.run(stored_inputs(options.key, most=options.stored or USUAL_SAMPLES))
    except (DatabaseError, SettingsError, OSError, SQLAlchemyError) as error:
        if options.stored is not None:
            raise
        return ["", f"# not rendered with stored inputs: {explain(error)}"]
    if not found and options.stored is not None:
        raise CommandRefused(f"no inputs of {options.key} are stored; give --inputs FILE")
    if not found:
        return ["", f"# not rendered: no inputs of {options.key} are stored; give --inputs FILE"]
    return [line for one in found for line in _rendered_with(registry, versions, one.inputs, name=_name(one))]


def _name(one: StoredInputs) -> str:
    return f"call {one.call_id} of {one.ts:%Y-%m-%d %H:%M:%S} UTC"


def _rendered_with(
    registry: Registry, versions: Sequence[PromptVersion], inputs: Mapping[str, Any], *, name: str
) -> list[str]:
    def text_of(version: PromptVersion) -> list[str]:
        try:
            return messages_of(registry.render(version, inputs))
        except (InputsRefused, RenderFailed) as error:
            return [f"cannot be rendered: {error}"]

    return ["", f"# rendered with {name}", *_unified(versions, text_of)]


def _unified(versions: Sequence[PromptVersion], text_of: Callable[[PromptVersion], list[str]]) -> list[str]:
    old, new = versions
    lines = difflib.unified_diff(text_of(old), text_of(new), _name_of(old), _name_of(new), lineterm="")
    return list(lines) or ["no difference"]


def _name_of(version: PromptVersion) -> str:
    return f"{version.key} {version.version}"


def _as_text(prompt: PromptVersion) -> list[str]:
    constraint = prompt.constraint
    output: Any = None
    if constraint is not None:
        output = {"choice": list(constraint.choice)} if constraint.choice else constraint.schema
    sampling = {name: getattr(prompt.sampling, name) for name in sorted(prompt.sampling_fields)}
    # Unsorted: the order of a schema's properties is what the model writes in, so it is a difference of its own.
    schemas = _Plain.dump_lines({"inputs": prompt.inputs_schema, "output": output, "sampling": sampling})
    return ["system:", *prompt.system.splitlines(), "user_template:", *prompt.user_template.splitlines(), *schemas]


class _Plain(yaml.SafeDumper):
    """Writes each place out in full: an anchor in one of two texts would look like a difference."""

    def ignore_aliases(self, data: Any) -> bool:
        """No value is written as a reference to another."""
        return True

    @classmethod
    def dump_lines(cls, data: Any) -> list[str]:
        """The data as lines of YAML, in its own order."""
        return yaml.dump(data, Dumper=cls, sort_keys=False, allow_unicode=True).splitlines()
