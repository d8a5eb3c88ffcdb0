"""What a prompt's author wants to be told before a version is released, since it never changes after that."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from jinja2 import Environment
from jinja2.meta import find_undeclared_variables

from libs.llm.registry import Registry
from libs.llm.types import PromptVersion

SHORT_TEXT = 64
"""Characters up to which a text in a template is taken for a name or a code, not for prose."""
BOUNDS_OF_TEXT = ("enum", "const", "pattern", "maxLength")


def warnings_of(prompt: PromptVersion, registry: Registry) -> list[str]:
    """What is allowed and probably not meant, one sentence each; empty where there is nothing to say."""
    return [
        *_of_inputs(prompt, registry),
        *_of_wording(prompt),
        *_of_sampling(prompt),
        *_of_reply(prompt),
        *_twins(prompt, registry),
    ]


def warnings_of_choices(registry: Registry) -> Iterator[str]:
    """Drafts that the file itself gives to units: they are judged by, and may still change."""
    keys = registry.keys()
    for key in keys:
        drafts = {prompt.version for prompt in registry.versions(key).values() if prompt.released_at is None}
        active, experiment = registry.active(key).version, registry.experiment(key)
        arms = {} if experiment is None else dict(experiment.arms)
        if active in drafts:
            yield f"{key}: the file makes {active} active, and it is a draft"
        yield from (
            f"{key}: the experiment of the file gives units to {version}, and it is a draft"
            for version, weight in arms.items()
            if weight > 0 and version in drafts
        )


def variables_of(prompt: PromptVersion) -> set[str]:
    """The variables that the templates of a version name."""
    environment = Environment(autoescape=True)  # only parses; what is sent is rendered by the registry
    return {
        name
        for source in (prompt.system, prompt.user_template)
        for name in find_undeclared_variables(environment.parse(source))
    }


def _of_inputs(prompt: PromptVersion, registry: Registry) -> Iterator[str]:
    properties: Mapping[str, Any] = prompt.inputs_schema["properties"]
    used = variables_of(prompt)
    # What another version takes is sent whatever this one uses, and must be declared.
    others = [other for other in registry.versions(prompt.key).values() if other.version != prompt.version]
    sent = {name for other in others for name in other.inputs_schema["properties"]}
    unused = [name for name in properties if name not in used and name not in prompt.untrusted and name not in sent]
    if unused:
        yield f"declares inputs that it never uses: {', '.join(unused)}"
    prose = [name for name in properties if name in used and _is_prose(properties[name])]
    if prose:
        yield (
            f"puts free text into its template: {', '.join(prose)}; text from outside needs x-untrusted: true, "
            f"other text a pattern, an enum or a maxLength of at most {SHORT_TEXT}"
        )


def _is_prose(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return True
    known = cast("Mapping[str, Any]", schema)
    if known.get("type") == "array":
        return _is_prose(known.get("items", {}))
    kinds: Any = known.get("type")
    may_be_text = kinds is None or kinds == "string" or (isinstance(kinds, list) and "string" in kinds)
    if not may_be_text or any(name in known for name in ("enum", "const", "pattern")):
        return False
    longest: Any = known.get("maxLength")
    return longest is None or longest > SHORT_TEXT


def _of_wording(prompt: PromptVersion) -> Iterator[str]:
    system = prompt.system.lower()
    if prompt.untrusted and not any(word.lower() in system for word in (*prompt.untrusted, "data", "untrusted")):
        yield (
            f"sends {', '.join(prompt.untrusted)} as data of strangers and its system text does not say so; "
            "tell the model that they are never instructions"
        )
    constraint = prompt.constraint
    if constraint is None:
        return
    text = f"{prompt.system}\n{prompt.user_template}"
    words = constraint.choice or tuple(cast("Mapping[str, Any]", (constraint.schema or {}).get("properties", {})))
    unsaid = [word for word in words if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    if unsaid and (not constraint.choice or len(unsaid) == len(words)):
        kind = "the choices" if constraint.choice else "the fields of the reply"
        yield f"never names {kind} {', '.join(unsaid)}: the engine forces them on a model that does not expect them"


def _of_sampling(prompt: PromptVersion) -> Iterator[str]:
    temperature = prompt.sampling.temperature
    if "max_tokens" not in prompt.sampling_fields:
        yield "has no max_tokens: LLM_MAX_OUTPUT_TOKENS bounds its replies, and changing that changes this version"
    if "temperature" not in prompt.sampling_fields:
        yield "has no temperature: LLM_TEMPERATURE decides, and changing that changes this version"
    elif temperature > 0 and prompt.constraint is not None:
        yield f"asks for a decision at temperature {temperature:g}: a replay may decide otherwise by chance alone"
    elif temperature > 0 and "seed" not in prompt.sampling_fields:
        yield f"has temperature {temperature:g} and no seed: the same inputs are answered differently each time"


def _of_reply(prompt: PromptVersion) -> Iterator[str]:
    schema = None if prompt.constraint is None else prompt.constraint.schema
    if schema is None:
        return
    endless, optional = list(_endless(schema, "")), list(_optional(schema, ""))
    if endless:
        yield f"sets no end to {', '.join(endless)} of the reply (maxLength, maxItems): max_tokens may cut it"
    if optional:
        yield f"lets the model leave out {', '.join(optional)}: name them under required"


def _children(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    properties: Any = schema.get("properties", {})
    if isinstance(properties, Mapping):
        for name, child in cast("Mapping[str, Any]", properties).items():
            if isinstance(child, Mapping):
                yield f"{path}.{name}" if path else name, cast("Mapping[str, Any]", child)
    items: Any = schema.get("items")
    if isinstance(items, Mapping):
        yield f"{path}[]", cast("Mapping[str, Any]", items)


def _endless(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    kind = schema.get("type")
    if kind == "string" and not any(name in schema for name in BOUNDS_OF_TEXT):
        yield path
    if kind == "array" and "maxItems" not in schema:
        yield path
    for inner, child in _children(schema, path):
        yield from _endless(child, inner)


def _optional(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    required: Any = schema.get("required", [])
    for inner, child in _children(schema, path):
        if not inner.endswith("[]") and inner.rpartition(".")[2] not in required:
            yield inner
        yield from _optional(child, inner)


def _twins(prompt: PromptVersion, registry: Registry) -> Iterator[str]:
    for other in registry.versions(prompt.key).values():
        if other.version == prompt.version:
            return
        if _content(other) == _content(prompt):
            yield f"asks exactly what {other.version} asks"


def _content(prompt: PromptVersion) -> tuple[object, ...]:
    return (prompt.system, prompt.user_template, prompt.inputs_schema, prompt.constraint, prompt.sampling)
