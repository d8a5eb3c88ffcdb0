"""The licences of what we ship, as the packages' own metadata says them: nothing under the GPL or the AGPL."""

import re
from collections.abc import Iterable, Mapping
from email.message import Message
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Protocol

from tools.supply_chain.locks import Pin
from tools.supply_chain.startup_files import site_folders

EXCUSED: Mapping[str, str] = {
    "docutils": "the GPL covers its support for an editor, which its wheel does not hold; the rest is public domain",
}
"""Packages whose metadata names such a licence and which may be shipped, with the reason."""
LONGEST_NAME = 200
"""Longer words are the text of a licence, not its name."""

_STRICT = re.compile(r"\bA?GPL|(?<!Lesser )General Public License|Affero", re.IGNORECASE)


class Metadata(Protocol):
    """What a package says of itself."""

    def get_all(self, name: str, failobj: list[str]) -> list[str]:
        """All values of a field."""
        ...


def installed(environment: Path) -> dict[str, Distribution]:
    """The packages of an environment by name."""
    found = distributions(path=[str(folder) for folder in site_folders(environment)])
    return {re.sub(r"[-_.]+", "-", one.name).lower(): one for one in found}


def named(metadata: Message | Metadata) -> list[str]:
    """The licences that metadata names: its expression, else its classifiers, else its short name."""
    expressions = metadata.get_all("License-Expression", [])
    classifiers = [
        line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier", []) if line.startswith("License ::")
    ]
    short = [line for line in metadata.get_all("License", []) if line and len(line) <= LONGEST_NAME]
    return expressions or [line for line in classifiers if line != "OSI Approved"] or short


def is_strict(licence: str) -> bool:
    """Whether a licence leaves no choice but the GPL or the AGPL."""
    alternatives = re.split(r"\sOR\s", licence)
    return all(_STRICT.search(alternative) for alternative in alternatives)


def check_licences(pins: Iterable[Pin], environment: Path) -> list[str]:
    """What is wrong with the licences of the packages that are installed here."""
    packages = installed(environment)
    wrong: list[str] = []
    for key in sorted({pin.key for pin in pins} & packages.keys()):
        licences = named(packages[key].metadata)
        if not licences:
            wrong.append(f"{key}: its metadata names no licence")
        elif key not in EXCUSED and any(map(is_strict, licences)):
            wrong.append(f"{key}: {', '.join(licences)}")
    return wrong
