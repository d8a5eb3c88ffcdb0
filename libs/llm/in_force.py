"""What is in force for a prompt key: what the file says, what the environment says, and what was activated since.

The latest activation of a key rules as long as the ground it was made on stands: the key's `version` and `experiment`
in the file and its entry in `LLM_AB_BUCKETS`. Where one of them changed since, the file and the environment rule
again; where it is changed back, so does the activation. Everything here is pure: same in, same out, in every process.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

from libs.llm.errors import ExperimentError
from libs.llm.experiments import Experiment, bounds_of, check_arms, worths_of
from libs.llm.types import PromptVersion

Arms: TypeAlias = tuple[tuple[str, float], ...]
Source: TypeAlias = Literal["file", "environment", "activation"]

_HASH_SHOWN = 8


class Versions(Protocol):
    """What must be known of the prompts' file; `Registry` is one."""

    def keys(self) -> tuple[str, ...]:
        """All prompt keys."""
        ...

    def versions(self, key: str) -> Mapping[str, object]:
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
    the entry of `LLM_AB_BUCKETS` as `1.0.0@90,1.1.0@10`, None where there is none. Equal grounds mean the same.
    """

    file_version: str
    file_experiment: Any
    env_arms: str | None


@dataclass(frozen=True, slots=True)
class Activation:
    """One row of `activations`: the version in force from then on and the arms beside it, () where none run."""

    id: int
    key: str
    version: str
    arms: Arms
    who: str
    why: str
    ground: Ground
    at: datetime


@dataclass(frozen=True, slots=True)
class InForce:
    """What rules for a key now, and by whose word.

    `version` is given where no experiment runs. `experiment` is whole: guardrails, metrics, phase and control. An
    experiment of one arm with all the weight is one too. `activation` is the latest one, whether it rules
    (`source` says so) or its ground has changed. `trouble` says why an activation that should rule is not followed.
    """

    version: str
    experiment: Experiment | None
    source: Source
    activation: Activation | None
    ground: Ground
    trouble: str | None = None


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
    registry: Versions, key: str, *, buckets: Mapping[str, Experiment], activation: Activation | None
) -> InForce:
    """What rules for `key`: its latest activation, else the environment, else the file. Raises `UnknownPrompt`.

    An activation that names a version which is not in the file cannot be followed; `trouble` then says so.
    """
    ground = ground_of(registry, key, buckets)
    in_file = registry.experiment(key)
    bucket = buckets.get(key)
    arms = bucket.arms if bucket is not None else () if in_file is None else in_file.arms
    source: Source = "file" if bucket is None else "environment"
    found = InForce(
        version=ground.file_version,
        experiment=_experiment(key, arms, in_file, phase=f"{source}-", control=ground.file_version),
        source=source,
        activation=activation,
        ground=ground,
    )
    if activation is None or activation.ground != ground:
        return found
    problem = _problem(activation, registry.versions(key))
    if problem is not None:
        return replace(found, trouble=f"activation {activation.id} of {key} is not followed: {problem}")
    phase = f"activation-{activation.id}"
    return replace(
        found,
        version=activation.version,
        experiment=_experiment(key, activation.arms, in_file, phase=phase, control=activation.version),
        source="activation",
    )


def _experiment(key: str, arms: Arms, in_file: Experiment | None, *, phase: str, control: str) -> Experiment | None:
    """The experiment with these arms; everything else is the file's. A `phase` that ends in - gets its hash here."""
    if not arms:
        return None
    said = in_file if in_file is not None else Experiment(arms)
    return Experiment(
        arms=arms,
        unit=said.unit,
        guardrails=bounds_of(said.guardrails),
        metrics=worths_of(said.metrics),
        phase=f"{phase}{_hash(key, said.unit, arms)}" if phase.endswith("-") else phase,
        control=control if any(version == control for version, _ in arms) else arms[0][0],
    )


def _hash(key: str, unit: str, arms: Arms) -> str:
    said = json.dumps([key, unit, arms_as_pairs(arms)], ensure_ascii=False, separators=(",", ":"))
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
