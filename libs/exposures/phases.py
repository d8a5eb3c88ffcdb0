"""Which phase of an experiment is meant, and the report on it: what the route and the page both ask for."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.exposures.figures import ExperimentReport, State
from libs.exposures.metrics import metrics_of
from libs.exposures.report import candidates_of, report
from libs.exposures.sums import Phase, PhaseSums, read_phase, sums_of
from libs.llm.activations import history
from libs.llm.experiments import Experiment, bounds_of, parse_buckets, worths_of
from libs.llm.in_force import Activation, Ground, in_force
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.types import PromptVersion

MOST_ACTIVATIONS = 1000
ACTIVATION = "activation-"

# The newest exposure names the phase that was assigned last.
LAST_PHASE = text("select phase from exposures where key = :key order by assigned_at desc limit 1")

# How often each arm of a phase was given, most often first.
ARMS = text("select arm from exposures where key = :key and phase = :phase group by arm order by count(*) desc, arm")


class NoExperiment(Exception):
    """There is no such experiment; the message says what there is instead."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A phase as it was or is. `weighted` is False where the weights of its arms are not known any more."""

    key: str
    experiment: Experiment
    state: State
    weighted: bool = True


async def find(connection: AsyncConnection, now: Prompts, key: str, phase: str | None = None) -> Asked:
    """The phase that is asked for, the running one where none is. Raises `NoExperiment`.

    A phase that has ended is known by its activation, or by what file and environment say, or said when anything was
    activated. Of others only the arms are known, from their exposures; the arm that most were given then counts as the
    control.
    """
    if key not in now.in_force:
        raise NoExperiment(f"there is no prompt {key}")
    running = now.in_force[key].experiment
    if running is not None and phase in (None, running.phase):
        return Asked(key, running, "running")
    if phase is None:
        raise NoExperiment(f"no experiment runs on {key}; {await _last(connection, key)}")
    known = await _as_it_was(connection, now, key, phase)
    if known is not None:
        return Asked(key, known, "ended")
    arms = list((await connection.execute(ARMS, {"key": key, "phase": phase})).scalars())
    if not arms:
        raise NoExperiment(f"{key} has no phase {phase}; {await _last(connection, key)}")
    said = now.registry.experiment(key) or Experiment(())
    guessed = replace(
        said,
        arms=tuple((arm, 1.0) for arm in arms),
        guardrails=bounds_of(said.guardrails),
        metrics=worths_of(said.metrics),
        phase=phase,
        control=arms[0],
    )
    return Asked(key, guessed, "ended", weighted=False)


async def _last(connection: AsyncConnection, key: str) -> str:
    last = await connection.scalar(LAST_PHASE, {"key": key})
    return "none ever gave a forecast an arm" if last is None else f"the last phase was {last}"


async def _as_it_was(connection: AsyncConnection, now: Prompts, key: str, phase: str) -> Experiment | None:
    """The experiment of a phase that is not in force, None where nothing says what it was.

    Activations keep what file and environment said when they were made, so that of a guardrail, or of a person, knows
    the experiment that it ended.
    """
    changes = await history(connection, key, limit=MOST_ACTIVATIONS)
    for one in changes:
        if f"{ACTIVATION}{one.id}" == phase and one.arms:
            return _of_activation(one)
    for ground in (now.in_force[key].ground, *(one.ground for one in changes)):
        for said in _said_by(ground, now.registry, key):
            if said.phase == phase:
                return said
    return None


@dataclass(frozen=True, slots=True)
class _Once:
    """The prompts' file as it named a key's version and experiment once; the versions themselves are today's."""

    registry: Registry
    key: str
    version: str
    said: Experiment | None

    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def versions(self, key: str) -> Mapping[str, PromptVersion]:
        return self.registry.versions(key)

    def active(self, key: str) -> PromptVersion:
        return self.registry.version(key, self.version)

    def experiment(self, key: str) -> Experiment | None:
        return self.said if key == self.key else None


def _said_by(ground: Ground, registry: Registry, key: str) -> Iterator[Experiment]:
    """What the environment and the file asked for once; nothing of versions that are not in the file any more."""
    buckets = parse_buckets("" if ground.env_arms is None else f"{key}:{ground.env_arms}")
    once = _Once(registry, key, ground.file_version, _of_file(ground))
    named = {ground.file_version, *(arm for each in (once.said, *buckets.values()) if each for arm, _ in each.arms)}
    if not named <= registry.versions(key).keys():
        return
    for said in (in_force(once, key, buckets=buckets), in_force(once, key, buckets={})):
        if said.experiment is not None:
            yield said.experiment


def _of_file(ground: Ground) -> Experiment | None:
    said: dict[str, Any] | None = ground.file_experiment
    if said is None:
        return None
    return Experiment(
        arms=tuple((str(version), float(weight)) for version, weight in said["arms"]),
        unit=said.get("unit", Experiment(()).unit),
        guardrails=said.get("guardrails"),
        metrics=said.get("metrics"),
    )


def _of_activation(activation: Activation) -> Experiment:
    said: dict[str, Any] = activation.ground.file_experiment or {}
    versions = [version for version, _ in activation.arms]
    return Experiment(
        arms=activation.arms,
        unit=said.get("unit", Experiment(()).unit),
        guardrails=bounds_of(said.get("guardrails")),
        metrics=worths_of(said.get("metrics")),
        phase=f"{ACTIVATION}{activation.id}",
        control=activation.version if activation.version in versions else versions[0],
    )


async def read(connection: AsyncConnection, asked: Asked) -> Phase:
    """The exposures of a phase, packed."""
    return await read_phase(connection, asked.key, asked.experiment.phase)


async def report_on(asked: Asked, phase: Phase) -> ExperimentReport:
    """The report on a phase that was read. The adding up is done in a thread, so that nobody waits for it."""
    return await asyncio.to_thread(_report, asked, phase)


def _report(asked: Asked, phase: Phase) -> ExperimentReport:
    sums = phase_sums(asked, phase)
    return report(asked.key, asked.experiment, sums, state=asked.state, weighted=asked.weighted)


def phase_sums(asked: Asked, phase: Phase) -> PhaseSums:
    """The sums that the report rests on."""
    experiment = asked.experiment
    return sums_of(
        phase,
        control=experiment.control,
        candidates=candidates_of(experiment),
        metrics=tuple(metrics_of(asked.key, experiment.metrics)),
    )
