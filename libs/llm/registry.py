"""The prompts as the process uses them: versions, hashes, compiled templates and validators.

`python -m libs.llm.registry` is the tool for people: check, list, render, release, diff.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import structlog
from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from libs.llm.errors import InputsRefused, PromptFileError, RenderFailed, UnknownPrompt
from libs.llm.experiments import Experiment
from libs.llm.lock import Released, broken_promises, read_lock
from libs.llm.prompt_file import Place, PromptKey, read_prompts
from libs.llm.structured import Output, Schema
from libs.llm.types import PromptVersion, Rendered
from libs.llm.untrusted import clean_inputs
from libs.upstreams.types import Message

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Compiled:
    prompt: PromptVersion
    system: Template
    user: Template
    inputs: Schema
    output: Output


class _Environment(ImmutableSandboxedEnvironment):
    """Templates see their variables, Jinja's filters, `range` and `namespace`, nothing of Python and no chance: the
    same version and variables make the same messages.
    """

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=False)
        self.globals = {name: self.globals[name] for name in ("range", "namespace")}
        del self.filters["random"]


class Registry:
    """All prompt versions of one file, ready to render. Built once at start, never changed."""

    def __init__(self, prompts: Mapping[str, PromptKey], *, path: Path) -> None:
        self.path = path
        self._prompts = dict(prompts)
        environment = _Environment()
        self._compiled = {
            (prompt.key, prompt.version): _compile(environment, prompt, path)
            for entry in self._prompts.values()
            for prompt in entry.versions.values()
        }

    @classmethod
    def load(cls, path: Path, lock_path: Path | None = None) -> "Registry":
        """Read the prompts and hold them against their lock (beside the file where `lock_path` is None).

        Raises `PromptFileError` for whatever is wrong with either file: also where a released version was edited or
        has vanished. A version that is not released yet is a draft: usable, and logged as such.
        """
        registry = cls.load_quietly(path, lock_path)
        drafts = [f"{prompt.key} {prompt.version}" for prompt in registry.drafts()]
        if drafts:
            log.warning("prompt_versions_not_released", drafts=drafts)
        return registry

    @classmethod
    def load_quietly(cls, path: Path, lock_path: Path | None = None) -> "Registry":
        """The same without a word about drafts."""
        where = lock_path if lock_path is not None else path.with_suffix(".lock")
        prompts = read_prompts(path)
        lock = read_lock(where)
        broken = list(broken_promises(prompts, lock, file=path))
        if broken:
            raise PromptFileError("\n".join(broken))
        return cls(_with_releases(prompts, lock), path=path)

    @classmethod
    def load_unlocked(cls, path: Path) -> "Registry":
        """Read the prompts without any lock: for the tools that write it."""
        return cls(read_prompts(path), path=path)

    def keys(self) -> tuple[str, ...]:
        """All prompt keys, in the file's order."""
        return tuple(self._prompts)

    def active(self, key: str) -> PromptVersion:
        """The version a key is answered by where no experiment runs. Raises `UnknownPrompt`."""
        entry = self._entry(key)
        return entry.versions[entry.active]

    def version(self, key: str, version: str) -> PromptVersion:
        """One version. Raises `UnknownPrompt`."""
        found = self._entry(key).versions.get(version)
        if found is None:
            raise UnknownPrompt(f"prompt {key!r} has no version {version!r}")
        return found

    def versions(self, key: str) -> Mapping[str, PromptVersion]:
        """All versions of a key by number, in the file's order. Raises `UnknownPrompt`."""
        return self._entry(key).versions

    def experiment(self, key: str) -> Experiment | None:
        """The experiment the file asks for. Raises `UnknownPrompt`."""
        return self._entry(key).experiment

    def drafts(self) -> Iterator[PromptVersion]:
        """The versions that are not released."""
        for entry in self._prompts.values():
            yield from (prompt for prompt in entry.versions.values() if prompt.released_at is None)

    def output(self, prompt: PromptVersion) -> Output:
        """What a version accepts as an answer, compiled."""
        return self._of(prompt).output

    def render(self, prompt: PromptVersion, inputs: Mapping[str, Any]) -> Rendered:
        """The messages of a version for these variables: system, untrusted data as JSON (if the version has such
        inputs), user. An empty system text sends no system message.

        Raises `InputsRefused` where the variables do not fit the schema, `RenderFailed` where a template cannot be
        rendered with them.
        """
        compiled = self._of(prompt)
        ticker = inputs.get("ticker", "")
        untrusted = clean_inputs(
            inputs,
            untrusted=prompt.untrusted,
            schema=prompt.inputs_schema,
            ticker=ticker if isinstance(ticker, str) else "",
        )
        known: dict[str, Any] = {name: untrusted.get(name, value) for name, value in inputs.items()}
        problem = compiled.inputs.problem(known)
        if problem is not None:
            raise InputsRefused(f"prompt {prompt.key} {prompt.version}: {problem}")
        trusted = {name: value for name, value in inputs.items() if name not in prompt.untrusted}
        system = _render(compiled.system, trusted, prompt, "system")
        user = _render(compiled.user, trusted, prompt, "user_template")
        messages = [Message("system", system)] if system else []
        if prompt.untrusted:
            messages.append(Message("user", orjson.dumps(untrusted).decode()))
        messages.append(Message("user", user))
        return Rendered(prompt=prompt, messages=tuple(messages))

    def _entry(self, key: str) -> PromptKey:
        entry = self._prompts.get(key)
        if entry is None:
            raise UnknownPrompt(f"there is no prompt {key!r}")
        return entry

    def _of(self, prompt: PromptVersion) -> _Compiled:
        compiled = self._compiled.get((prompt.key, prompt.version))
        if compiled is None or compiled.prompt.sha256 != prompt.sha256:
            raise UnknownPrompt(f"prompt {prompt.key!r} {prompt.version!r} is not of {self.path}")
        return compiled


def _with_releases(prompts: Mapping[str, PromptKey], lock: Mapping[tuple[str, str], Released]) -> dict[str, PromptKey]:
    def released(prompt: PromptVersion) -> PromptVersion:
        entry = lock.get((prompt.key, prompt.version))
        return prompt if entry is None else replace(prompt, released_at=entry.released_at)

    return {
        key: replace(entry, versions={number: released(prompt) for number, prompt in entry.versions.items()})
        for key, entry in prompts.items()
    }


def _compile(environment: _Environment, prompt: PromptVersion, path: Path) -> _Compiled:
    place = Place(path, prompt.key, prompt.version)
    constraint = prompt.constraint
    return _Compiled(
        prompt=prompt,
        system=_template(environment, prompt.system, prompt, place.at("system")),
        user=_template(environment, prompt.user_template, prompt, place.at("user_template")),
        inputs=Schema(prompt.inputs_schema),
        output=Output() if constraint is None else Output(schema=constraint.schema, choice=constraint.choice),
    )


def _template(environment: _Environment, source: str, prompt: PromptVersion, place: Place) -> Template:
    try:
        tree = environment.parse(source)
        template = environment.from_string(source)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise place.wrong(f"{'' if line is None else f'line {line}: '}{error}") from error
    if any(tree.find(kind) is not None for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        raise place.wrong("a template cannot load another")
    properties: Mapping[str, Any] = prompt.inputs_schema["properties"]
    required = set(prompt.inputs_schema["required"])
    for name in sorted(find_undeclared_variables(tree) - set(environment.globals)):
        if name in prompt.untrusted:
            raise place.wrong(f"the variable {name!r} is untrusted and reaches the model as data only")
        if name not in properties:
            raise place.wrong(f"unknown variable {name!r}; the inputs are {', '.join(properties) or 'none'}")
        if name not in required:
            raise place.wrong(f"the variable {name!r} must be among the required inputs")
    _check_members(tree, properties, place)
    return template


def _check_members(tree: nodes.Template, properties: Mapping[str, Any], place: Place) -> None:
    """Members of an input that is a closed object must exist as well: `rules.typo` is found at start."""
    for node in tree.find_all(nodes.Getattr):
        if not isinstance(node.node, nodes.Name):
            continue
        schema = properties.get(node.node.name)
        if not isinstance(schema, Mapping) or schema.get("additionalProperties") is not False:  # pyright: ignore[reportUnknownMemberType]
            continue
        members: Any = schema.get("properties", {})  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
        if node.attr not in members:
            raise place.wrong(f"unknown variable {f'{node.node.name}.{node.attr}'!r}")


def _render(template: Template, variables: Mapping[str, Any], prompt: PromptVersion, field: str) -> str:
    try:
        text = template.render(variables)
        text.encode()  # a lone surrogate cannot be sent
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise RenderFailed(f"prompt {prompt.key} {prompt.version}, {field}: {error}") from error
    return text


if __name__ == "__main__":
    from libs.llm.commands import main

    sys.exit(main(sys.argv[1:]))
