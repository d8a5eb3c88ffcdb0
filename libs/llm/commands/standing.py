"""Where the prompts stand: the file, `LLM_AB_BUCKETS` and the latest activations, and all of it in words."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
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

    def in_force(self, key: str, activations: Sequence[Activation] = ()) -> InForce:
        """What rules for a key with these activations, newest first. Raises `UnknownPrompt`."""
        return in_force(self.registry, key, buckets=self.buckets, activations=activations)


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
    """What rules for a key and by whose word, an activation that is not followed, and a later one on other ground."""
    activation = found.activation
    if found.source == "activation" and activation is not None:
        by = f"activation {activation.id} by {activation.who}, {activation.at:%Y-%m-%d %H:%M:%S} UTC: {activation.why}"
    else:
        by = BY_FILE if found.source == "file" else BY_ENVIRONMENT
    lines = [f"{key}: {given_words(found)} ({by})"]
    if found.trouble is not None:
        lines.append(f"warning: {found.trouble}")
    stranger = made_elsewhere(found)
    if stranger is not None:
        lines.append(_elsewhere(key, stranger, found))
    return lines


def made_elsewhere(found: InForce) -> Activation | None:
    """The key's latest activation, where it was made on another ground than what stands here."""
    last = found.last
    return None if last is None or last.ground.agrees_with(found.ground) else last


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
    """What file and environment say, for people. Of an activation that can be read."""
    return ", ".join(f"{name} {words}" for name, words in _said(ground).items())


def _said(ground: Ground) -> dict[str, str]:
    said = ground.file_experiment
    experiment = "none"
    if said is not None:
        arms = ", ".join(f"{version} {weight}" for version, weight in said["arms"])
        experiment = f"{arms} per {UNITS.get(said.get('unit'), 'unknown unit')}"
    return {
        "file version": ground.file_version,
        "experiment": experiment,
        "LLM_AB_BUCKETS": ground.env_arms or "nothing",
    }


def _difference(there: Ground, here: Ground) -> str:
    """What differs between two grounds, for people."""
    pairs = zip(_said(there).items(), _said(here).values(), strict=True)
    return "; ".join(f"{name} {old} there, {new} here" for (name, old), new in pairs if old != new)


def _elsewhere(key: str, stranger: Activation, found: InForce) -> str:
    gives = arms_words(stranger.arms) if stranger.arms else stranger.version
    if stranger.problem is not None:
        return f"warning: the latest activation of {key} ({stranger.id} by {stranger.who}): {stranger.problem}"
    made = (
        f"the latest activation of {key} ({stranger.id} by {stranger.who}, {stranger.at:%Y-%m-%d %H:%M:%S} UTC: "
        f"{gives}) was made on another ground and does not rule by what stands here: "
        f"{_difference(stranger.ground, found.ground)}"
    )
    if (stranger.version, stranger.arms) == _given(found):
        return f"note: {made}. It gave what rules here too, as it does once it is adopted"
    return (
        f"warning: {made}. If the services still run what it was made on, work with their file and environment: what "
        "is done here would not reach them"
    )


def _given(found: InForce) -> tuple[str, Arms]:
    return found.version, () if found.experiment is None else found.experiment.arms
