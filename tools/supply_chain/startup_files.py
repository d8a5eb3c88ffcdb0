"""Files that Python runs at every start of an environment: how stolen releases of packages have got their code to run.

A file that no package brought is a stranger. So is one that a package did bring and nobody here has looked at: the
record of a poisoned release names its own file. So is one that was looked at once and says something else now.
"""

import base64
import csv
import hashlib
from collections.abc import Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

KNOWN: Mapping[str, str] = {"distutils-precedence.pth": "sha256=JjjOniUA5XKl4N5_rtZmHrVp0baW_LoHsN0iPaX10iQ"}
"""Such files that were looked at, and what they held then. This one loads setuptools' own distutils, and no more; what
it loads comes with that package and is not looked at here."""
RUN_AT_START = frozenset({"sitecustomize", "usercustomize"})
"""Modules that Python imports at its start wherever it finds them: as a file, compiled, as a library, as a package."""


def site_folders(environment: Path) -> list[Path]:
    """Where an environment keeps its packages."""
    return sorted(environment.glob("lib*/python3.*/site-packages"))


def unexpected_files(environment: Path, known: Mapping[str, str] = KNOWN) -> list[str]:
    """What is wrong with the files that run at the start of an environment."""
    folders = site_folders(environment)
    if not folders:
        return [f"{environment}: there is no environment"]
    return [problem for folder in folders for problem in _of_folder(folder, known)]


def _of_folder(folder: Path, known: Mapping[str, str]) -> list[str]:
    recorded = {
        name: (distribution.name, digest)
        for distribution in distributions(path=[str(folder)])
        for name, digest in _recorded(distribution)
    }
    found = sorted(path for path in folder.iterdir() if _runs_at_start(path.name))
    problems = (_problem(path, *recorded.get(path.name, ("", "")), known=known) for path in found)
    return [problem for problem in problems if problem]


def _problem(path: Path, owner: str, brought: str, *, known: Mapping[str, str]) -> str:
    """What is wrong with a file that runs at the start, which its owner brought with a hash; empty where nothing is."""
    if path.is_dir():
        return f"{path}: Python imports it at every start, and what it holds is not known here"
    held = _digest(path)
    if not owner:
        return f"{path}: no installed package brought it"
    if brought != held:
        return f"{path}: not as {owner} brought it"
    if path.name not in known:
        return f"{path}: {owner} brought it, and nobody looked at it yet; it runs at every start of Python ({held})"
    if known[path.name] != held:
        return f"{path}: {owner} brought it, and it is not the one that somebody looked at ({held})"
    return ""


def _runs_at_start(name: str) -> bool:
    return name.endswith(".pth") or name.partition(".")[0] in RUN_AT_START


def _recorded(distribution: Distribution) -> list[tuple[str, str]]:
    """The files beside the packages that a distribution recorded, with their hashes."""
    lines = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    return [(line[0], line[1]) for line in lines if len(line) > 1 and "/" not in line[0]]


def _digest(path: Path) -> str:
    raw = hashlib.sha256(path.read_bytes()).digest()
    return "sha256=" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
