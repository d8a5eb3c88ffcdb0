"""What is in force for a prompt key: what the file says, what the environment says, and what was activated since.

For each process the latest activation that was made on its own ground rules: on the key's `version`, the arms and the
unit of its `experiment` in the file, and its entry in `LLM_AB_BUCKETS`. Where one of them changed since, the file and
the environment rule again; where it is changed back, so does the activation. An activation on another ground, such as
that of a checkout that lags behind, touches nothing. Everything here is pure: same in, same out, in every process.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias, cast

from libs.llm.errors import ExperimentError
from libs.llm.experiments import Experiment, bounds_of, check_arms, worths_of
from libs.llm.types import PromptVersion

Arms: TypeAlias = tuple[tuple[str, float], ...]
Source: TypeAlias = Literal["file", "environment", "activation"]

_HASH_SHOWN = 8


class Hashed(Protocol):
    """A version, as far as it matters here; `PromptVersion` is one."""

    @property
    def sha256(self) -> str:
        """The hash of its content."""
        ...


class Versions(Protocol):
    """What must be known of the prompts' file; `Registry` is one."""

    def keys(self) -> tuple[str, ...]:
        """All prompt keys."""
        ...

    def versions(self, key: str) -> Mapping[str, Hashed]:
        """The versions of a key, by number."""
        ...

    def active(self, key: str) -> PromptVersion:
        """The version the file names for a key."""
        ...

    def experiment(self, key: str) -> Experiment | None:
        """The experiment the file asks for."""
        ...


@dataclass(frozen=True, slots=True)
class Ground:
    """What file and environment say of a key.

    `file_experiment` is the file's experiment as JSON, arms as pairs in order, None where there is none. `env_arms` is
    the entry of `LLM_AB_BUCKETS` as `1.0.0@90,1.1.0@10`, None where there is none.
    """

    file_version: str
    file_experiment: Any
    env_arms: str | None

    def agrees_with(self, other: "Ground") -> bool:
        """Whether both give the same versions to the same units.

        Guardrails and metrics are kept for the record only: to edit a bound says nothing against who is given what.
        """
        return _what_is_given(self) == _what_is_given(other)


def _what_is_given(ground: Ground) -> tuple[Any, ...]:
    said = ground.file_experiment
    if isinstance(said, Mapping):
        entry = cast("Mapping[str, Any]", said)
        said = (entry.get("arms"), entry.get("unit"))
    return ground.file_version, said, ground.env_arms


@dataclass(frozen=True, slots=True)
class Activation:
    """One row of `activations`: the version in force from then on and the arms beside it, () where none run.

    `problem` says why a row that was written by hand cannot be read; such a row changes nothing.
    """

    id: int
    key: str
    version: str
    arms: Arms
    who: str
    why: str
    ground: Ground
    at: datetime
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class InForce:
    """What rules for a key now, and by whose word.

    `version` is given where no experiment runs. `experiment` is whole: guardrails, metrics, phase and control. An
    experiment of one arm with all the weight is one too. `activation` is the latest one on this ground, which rules
    where `source` says so; where this ground has none, it is `last`: the latest one of the key, whatever its ground.
    `trouble` says why an activation that should rule is not followed.
    """

    version: str
    experiment: Experiment | None
    source: Source
    activation: Activation | None
    ground: Ground
    trouble: str | None = None
    last: Activation | None = None

    @property
    def last_id(self) -> int | None:
        """What `activate` expects of those who judged by this: nobody activated anything since, on any ground."""
        return None if self.last is None else self.last.id


def check_buckets(registry: Versions, buckets: Mapping[str, Experiment]) -> None:
    """Raise `ExperimentError` naming the key or the version of `LLM_AB_BUCKETS` that does not exist."""
    keys = registry.keys()
    for key, bucket in buckets.items():
        if key not in keys:
            raise ExperimentError(f"LLM_AB_BUCKETS: there is no prompt {key!r}")
        known = registry.versions(key)
        for version, _ in bucket.arms:
            if version not in known:
                raise ExperimentError(
                    f"LLM_AB_BUCKETS: prompt {key!r} has no version {version!r}, only {', '.join(known)}"
                )


def ground_of(registry: Versions, key: str, buckets: Mapping[str, Experiment]) -> Ground:
    """What file and environment say of a key now. Raises `UnknownPrompt`."""
    bucket = buckets.get(key)
    return Ground(
        file_version=registry.active(key).version,
        file_experiment=experiment_as_json(registry.experiment(key)),
        env_arms=None if bucket is None else arms_as_text(bucket.arms),
    )


def experiment_as_json(experiment: Experiment | None) -> Any:
    """A file's experiment as it is kept with an activation; guardrails and metrics only where the file has them."""
    if experiment is None:
        return None
    said = {"guardrails": experiment.guardrails, "metrics": experiment.metrics}
    return {
        "arms": arms_as_pairs(experiment.arms),
        "unit": experiment.unit,
        **{name: dict(value) for name, value in said.items() if value is not None},
    }


def arms_as_pairs(arms: Arms) -> list[list[Any]]:
    """Arms as JSON keeps them with their order: `[["1.0.0", 90], ["1.1.0", 10]]`."""
    return [[version, _plain(weight)] for version, weight in arms]


def arms_as_text(arms: Arms) -> str:
    """Arms as `LLM_AB_BUCKETS` writes them: `1.0.0@90,1.1.0@10`."""
    return ",".join(f"{version}@{_plain(weight)}" for version, weight in arms)


def _plain(weight: float) -> float | int:
    return int(weight) if float(weight).is_integer() else weight


def in_force(
    registry: Versions, key: str, *, buckets: Mapping[str, Experiment], activations: Sequence[Activation] = ()
) -> InForce:
    """What rules for `key`: its latest activation on this ground, else environment, else file. Raises `UnknownPrompt`.

    `activations` are the key's, newest first; of those on one ground, all but the latest may be left out. One that
    cannot be read is passed over, and one that names a version which is not in the file gives way to environment and
    file; `trouble` then says so.
    """
    found = _without_activations(registry, key, buckets)
    own = [one for one in activations if one.ground.agrees_with(found.ground)]
    ruling = next((one for one in own if one.problem is None), None)
    passed_over = own if ruling is None else own[: own.index(ruling)]
    problems = [_not_followed(one, one.problem) for one in passed_over]
    last = activations[0] if activations else None
    found = replace(found, activation=ruling or next(iter(own), last), last=last)
    if ruling is not None:
        problem = _problem(ruling, registry.versions(key))
        if problem is None:
            found = _activated(found, registry, ruling)
        else:
            problems.append(_not_followed(ruling, problem))
    return replace(found, trouble="; ".join(problems) or None)


def _without_activations(registry: Versions, key: str, buckets: Mapping[str, Experiment]) -> InForce:
    ground = ground_of(registry, key, buckets)
    in_file = registry.experiment(key)
    bucket = buckets.get(key)
    arms = bucket.arms if bucket is not None else () if in_file is None else in_file.arms
    source: Source = "file" if bucket is None else "environment"
    unit = Experiment(arms).unit if in_file is None else in_file.unit
    phase = f"{source}-{_hash(key, unit, arms, registry.versions(key))}"
    return InForce(
        version=ground.file_version,
        experiment=_experiment(arms, in_file, phase=phase, control=ground.file_version),
        source=source,
        activation=None,
        ground=ground,
    )


def _activated(found: InForce, registry: Versions, activation: Activation) -> InForce:
    in_file = registry.experiment(activation.key)
    phase = f"activation-{activation.id}"
    experiment = _experiment(activation.arms, in_file, phase=phase, control=activation.version)
    return replace(found, version=activation.version, experiment=experiment, source="activation")


def _not_followed(activation: Activation, problem: str | None) -> str:
    return f"activation {activation.id} of {activation.key} is not followed: {problem}"


def _experiment(arms: Arms, in_file: Experiment | None, *, phase: str, control: str) -> Experiment | None:
    """The experiment with these arms; everything else is the file's."""
    if not arms:
        return None
    said = in_file if in_file is not None else Experiment(arms)
    return Experiment(
        arms=arms,
        unit=said.unit,
        guardrails=bounds_of(said.guardrails),
        metrics=worths_of(said.metrics),
        phase=phase,
        control=control if any(version == control for version, _ in arms) else arms[0][0],
    )


def _hash(key: str, unit: str, arms: Arms, known: Mapping[str, Hashed]) -> str:
    """What names a phase. The arms' own hashes count: a draft that is edited in place begins from zero."""
    contents = [known[version].sha256 for version, _ in arms]
    said = json.dumps([key, unit, arms_as_pairs(arms), contents], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()[:_HASH_SHOWN]


def _problem(activation: Activation, known: Mapping[str, object]) -> str | None:
    """Why an activation cannot be followed, or None."""
    for version in (activation.version, *(version for version, _ in activation.arms)):
        if version not in known:
            return f"it names version {version}, which is not in the file"
    if activation.arms:
        try:
            check_arms(activation.arms, where="its arms")
        except ExperimentError as error:
            return str(error)
    return None
