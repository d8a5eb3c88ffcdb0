"""Files that Python runs at every start of an environment: how stolen releases of packages have got their code to run.

A file that no package brought is a stranger. So is one that a package did bring and nobody here has looked at: the
record of a poisoned release names its own file.
"""

import base64
import csv
import hashlib
from collections.abc import Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

KNOWN: Mapping[str, str] = {"distutils-precedence.pth": "setuptools"}
"""Such files that were looked at, and whose they are."""
RUN_AT_START = ("sitecustomize.py", "usercustomize.py")


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
    wrong: list[str] = []
    for path in sorted([*folder.glob("*.pth"), *(folder / name for name in RUN_AT_START)]):
        if not path.exists():
            continue
        owner, digest = recorded.get(path.name, ("", ""))
        if not owner:
            wrong.append(f"{path}: no installed package brought it")
        elif digest != _digest(path):
            wrong.append(f"{path}: not as {owner} brought it")
        elif known.get(path.name) != owner:
            wrong.append(f"{path}: {owner} brought it, and nobody looked at it yet; it runs at every start of Python")
    return wrong


def _recorded(distribution: Distribution) -> list[tuple[str, str]]:
    """The files beside the packages that a distribution recorded, with their hashes."""
    lines = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    return [(line[0], line[1]) for line in lines if len(line) > 1 and "/" not in line[0]]


def _digest(path: Path) -> str:
    raw = hashlib.sha256(path.read_bytes()).digest()
    return "sha256=" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
