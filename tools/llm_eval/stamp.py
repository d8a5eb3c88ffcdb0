"""What a result stands on: the code, the prompts, the rules, the model that answered, the packages.

Two runs whose stamps agree but for the prompts compare the prompts and nothing else.
"""

import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from libs.evaluation.running.plan import Pinned

ROOT = Path(__file__).parents[2]
GIT_S = 10.0


def stamp(*, pinned: Iterable[Pinned], rules_file: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    """Everything as JSON. `commit` and `dirty` are None where the code does not stand in a checkout of git."""
    return {
        **_code(),
        "prompts": {f"{one.prompt} {one.version}": one.hash for one in pinned},
        "rules": {"file": str(rules_file), "sha256": sha256_of(rules_file)},
        "model": dict(model),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
    }


def sha256_of(path: Path) -> str:
    """The hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def packages() -> dict[str, str]:
    """Every installed distribution with its version, by name."""
    found = {each.metadata["Name"].lower(): each.version for each in distributions() if each.metadata["Name"]}
    return dict(sorted(found.items()))


def _code() -> dict[str, Any]:
    commit = _git("rev-parse", "HEAD")
    changes = None if commit is None else _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(*words: str) -> str | None:
    """What git says, None where there is none, or no checkout."""
    command = ["git", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
