"""Where the prompts stand: the file, `LLM_AB_BUCKETS` and the latest activations, and all of it in words."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from libs.llm.commands.refusal import CommandRefused
from libs.llm.errors import PromptFileError
from libs.llm.experiments import Experiment, parse_buckets
from libs.llm.in_force import Activation, Arms, Ground, InForce, check_buckets, in_force
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.settings import load

UNITS = {"ticker": "ticker", "ticker_day": "ticker and day", "forecast": "forecast"}
BY_FILE = "the file"
BY_ENVIRONMENT = "LLM_AB_BUCKETS"


@dataclass(frozen=True, slots=True)
class Files:
    """What file and environment say here, before any activation."""

    path: Path
    registry: Registry
    buckets: Mapping[str, Experiment]
    warnings: tuple[str, ...] = ()

    def in_force(self, key: str, latest: Activation | None) -> InForce:
        """What rules for a key if this is its latest activation. Raises `UnknownPrompt`."""
        return in_force(self.registry, key, buckets=self.buckets, activation=latest)


def read_files(options: Namespace) -> Files:
    """The prompts held against their lock, and `LLM_AB_BUCKETS`. Raises what names the place that is wrong."""
    return _with_environment(Files(path=options.file, registry=Registry.load_quietly(options.file), buckets={}))


def read_files_as_they_are(options: Namespace) -> Files:
    """The same for looking and for going back: somebody's half-finished edit of a version must not stop that.

    What the lock finds wrong becomes a warning. Raises only for a file that cannot be used at all.
    """
    try:
        return read_files(options)
    except PromptFileError as error:
        registry = _unlocked(options)
        files = Files(path=options.file, registry=registry, buckets={}, warnings=(f"warning: {error}",))
    return _with_environment(files)


def _unlocked(options: Namespace) -> Registry:
    try:
        return Registry.load_unlocked(options.file)
    except PromptFileError as error:
        raise CommandRefused(
            f"{error}\nwhat the services go by cannot be told without this file: put it back (git diff {options.file} "
            "shows the edit), or name a copy of theirs in PROMPTS_FILE"
        ) from error


def _with_environment(files: Files) -> Files:
    buckets = parse_buckets(load(LLMSettings).llm_ab_buckets)
    check_buckets(files.registry, buckets)
    return replace(files, buckets=buckets)


def standing_lines(key: str, found: InForce) -> list[str]:
    """What rules for a key and by whose word, and an activation that does not rule."""
    activation = found.activation
    if found.source == "activation" and activation is not None:
        by = f"activation {activation.id} by {activation.who}, {activation.at:%Y-%m-%d %H:%M:%S} UTC: {activation.why}"
    else:
        by = BY_FILE if found.source == "file" else BY_ENVIRONMENT
    lines = [f"{key}: {given_words(found)} ({by})"]
    if found.trouble is not None:
        lines.append(f"warning: {found.trouble}")
    elif activation is not None and found.source != "activation" and not _says(activation, found):
        lines.append(f"warning: {_left_behind(key, activation, found.ground)}")
    return lines


def given_words(found: InForce) -> str:
    """What units are given: one version, or arms with their shares."""
    if found.experiment is None:
        return f"{found.version} in force"
    return (
        f"{found.version} in force, experiment per {UNITS[found.experiment.unit]}: {arms_words(found.experiment.arms)}"
    )


def arms_words(arms: Arms) -> str:
    """Arms with their shares of all units: `1.0.0 90 %, 1.1.0 10 %`."""
    return ", ".join(f"{version} {share:.4g} %" for version, share in shares_of(arms).items())


def shares_of(arms: Arms) -> dict[str, float]:
    """The share of all units that each arm is given, in per cent."""
    total = sum(weight for _, weight in arms)
    return {version: 100 * weight / total if total else 0.0 for version, weight in arms}


def ground_words(ground: Ground) -> str:
    """What file and environment say, for people."""
    pairs: list[tuple[str, float]] = [] if ground.file_experiment is None else ground.file_experiment["arms"]
    arms = ", ".join(f"{version} {weight:g}" for version, weight in pairs)
    experiment = f"experiment {arms}" if arms else "no experiment"
    return f"file version {ground.file_version}, {experiment}, LLM_AB_BUCKETS {ground.env_arms or 'nothing'}"


def _says(activation: Activation, found: InForce) -> bool:
    """Whether an activation that does not rule any more has been written into the file meanwhile."""
    return (activation.version, activation.arms) == (
        found.version,
        () if found.experiment is None else found.experiment.arms,
    )


def _left_behind(key: str, activation: Activation, now: Ground) -> str:
    gives = arms_words(activation.arms) if activation.arms else activation.version
    return (
        f"activation {activation.id} of {key} ({gives}, by {activation.who}) does not rule by what stands here. It was "
        f"made on: {ground_words(activation.ground)}; here: {ground_words(now)}. If the services still run what it was "
        "made on, work with their file and environment: what is done here would not reach them"
    )
