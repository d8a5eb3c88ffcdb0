"""Where a process spends its CPU while a load runs, by function: py-spy reads its stacks from outside, unasked."""

import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.gateway.machine import LOAD_CORE, on_core
from bench.gateway.peers import PROFILER, NotMeasured, environment

RATE = 250
"""Samples per second."""
IDLE = "_worker (concurrent/futures/thread.py"
"""A thread of a pool without work, which py-spy takes for a busy one."""


@dataclass(frozen=True, slots=True)
class Hotspot:
    """A function: its share of the samples, on top of the stack (`own`) and anywhere in it (`whole`), 0 to 1."""

    function: str
    own: float
    whole: float


def sample(pid: int, seconds: float, folder: Path, *, native: bool = False) -> list[Hotspot]:
    """Watch a process for some seconds, only while it computes. Raises `NotMeasured`.

    `native` names the C functions too; it halts the process longer for each sample.
    """
    program = environment("py-spy", PROFILER) / "py-spy"
    path = folder / "stacks.txt"
    words = [str(program), "record", "--pid", str(pid), "--duration", str(round(seconds)), "--rate", str(RATE)]
    words += ["--format", "raw", "--function", "--output", str(path), *(["--native"] if native else [])]
    with on_core(LOAD_CORE):
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode != 0 or not path.exists():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotMeasured(f"py-spy: {said[-1] if said else 'no samples'}")
    return counted(path.read_text(encoding="utf-8", errors="replace"))


def counted(stacks: str) -> list[Hotspot]:
    """Add up stacks, one a line: functions joined by `;`, then how often it was seen. Most of its own time first."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    total = 0
    for line in stacks.splitlines():
        stack, _, times = line.rpartition(" ")
        if IDLE in stack:
            continue
        functions = stack.split(";")
        total += int(times)
        own[functions[-1]] += int(times)
        for function in set(functions):
            whole[function] += int(times)
    return [
        Hotspot(name, own[name] / total, seen / total)
        for name, seen in sorted(whole.items(), key=lambda one: -own[one[0]])
    ]


def described(spots: list[Hotspot], *, top: int = 25) -> list[str]:
    """Lines of the functions with most time of their own, and of those with most in all."""
    by_whole = sorted(spots, key=lambda spot: -spot.whole)[:top]
    lines = ["   own  whole  by own time"]
    lines += [f"  {spot.own:4.1%}  {spot.whole:5.1%}  {spot.function}" for spot in spots[:top]]
    lines += ["   own  whole  by whole time"]
    return lines + [f"  {spot.own:4.1%}  {spot.whole:5.1%}  {spot.function}" for spot in by_whole]
