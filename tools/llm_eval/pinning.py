"""Which versions an evaluation asks: those that were named, else those that are in force."""

from collections.abc import Iterable, Sequence

from libs.evaluation.running.plan import Pinned
from libs.judgement.assess import POLICY, RATIONALE
from libs.llm.prompts import Prompts
from tools.llm_eval.refusal import UsageRefused

JUDGES = (RATIONALE, POLICY)
"""The prompts that are asked about a case: no other one takes a judgement's inputs."""
HASH_SHOWN = 12


def pins(prompts: Prompts, keys: Sequence[str], versions: Sequence[str]) -> tuple[Pinned, ...]:
    """The versions to ask, with the content they have now.

    `versions` are numbers, which then count for every prompt of `keys`, or `policy@1.1.0` for one alone. A prompt
    without any is asked in the versions that units are given now: the one in force, or each arm of what runs. A draft
    may be evaluated. Raises `UsageRefused` naming what there is instead.
    """
    wanted = tuple(dict.fromkeys(keys)) or JUDGES
    for key in wanted:
        if key not in JUDGES:
            raise UsageRefused(f"--prompt {key}: only {' and '.join(JUDGES)} are asked about a signal")
    for word in versions:
        key, at, _ = word.rpartition("@")
        if at and key not in wanted:
            raise UsageRefused(f"--version {word}: {key or 'no prompt'} is not among the prompts: {', '.join(wanted)}")
    return tuple(pin for key in wanted for pin in _of(prompts, key, _named(key, versions) or in_force(prompts, key)))


def in_force(prompts: Prompts, key: str) -> tuple[str, ...]:
    """The versions that units are given now."""
    ruling = prompts.in_force[key]
    if ruling.experiment is None:
        return (ruling.version,)
    return tuple(version for version, weight in ruling.experiment.arms if weight > 0)


def spoken(prompts: Prompts, pinned: Iterable[Pinned], versions: Sequence[str]) -> list[str]:
    """Each version in words: its hash, whether it is released, and by whose word it is asked where nobody named it."""
    lines: list[str] = []
    for pin in pinned:
        draft = prompts.registry.version(pin.prompt, pin.version).released_at is None
        source = "" if _named(pin.prompt, versions) else f", in force by {_source(prompts, pin.prompt)}"
        lines.append(f"{pin} ({pin.hash[:HASH_SHOWN]}{', a draft' if draft else ''}{source})")
    return lines


def _source(prompts: Prompts, key: str) -> str:
    words = {"file": "the file", "environment": "LLM_AB_BUCKETS", "activation": "what was activated"}
    return words[prompts.in_force[key].source]


def _named(key: str, versions: Sequence[str]) -> tuple[str, ...]:
    """The versions among `versions` that are meant for a prompt, in their order, each once."""
    found = (word.rpartition("@") for word in versions)
    return tuple(dict.fromkeys(version for prompt, _, version in found if prompt in {"", key}))


def _of(prompts: Prompts, key: str, versions: Sequence[str]) -> Iterable[Pinned]:
    known = prompts.registry.versions(key)
    for version in versions:
        if version not in known:
            alone = "; --version policy@1.1.0 names one for a prompt alone"
            raise UsageRefused(f"{key} has no version {version}, only {', '.join(known)}{alone}")
        yield Pinned(key, version, known[version].sha256)
