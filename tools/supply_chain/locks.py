"""The locks in `requirements/`: every line a pin with hashes, and no word on where to fetch it from."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[A-Za-z0-9,._-]+\])?==(?P<version>[^\s;]+)(\s*;\s*[^\\]+?)?")
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Pin:
    """One requirement of a lock."""

    name: str
    version: str
    hashes: tuple[str, ...]

    @property
    def key(self) -> str:
        """The name as package indexes spell it."""
        return re.sub(r"[-_.]+", "-", self.name).lower()


def read_lock(path: Path) -> tuple[list[Pin], list[str]]:
    """The pins of a lock, and what is wrong with it, by line."""
    pins: list[Pin] = []
    wrong: list[str] = []
    for number, line in _joined(path.read_text(encoding="utf-8")):
        place = f"{path.name}:{number}"
        requirement, *options = re.split(r"\s+(?=--)", line)
        found = PIN.fullmatch(requirement.strip())
        if "://" in line or found is None:
            wrong.append(f"{place}: not a pin of one version: {line[:80]}")
            continue
        hashes = [HASH.fullmatch(option.strip()) for option in options]
        if not hashes or None in hashes:
            wrong.append(f"{place}: {found['name']}: {'an option that is no sha256' if hashes else 'no hash'}")
        pins.append(Pin(found["name"], found["version"], tuple(match[1] for match in hashes if match)))
    return pins, wrong if pins else [*wrong, f"{path.name}: no pins"]


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that end in a backslash joined to the next, with the number of the first."""
    begun, parts = 0, list[str]()
    for number, raw in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        if not line:
            continue
        begun = begun if parts else number
        parts.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            yield begun, " ".join(parts)
            parts = []
    if parts:
        yield begun, " ".join(parts)


def check_locks(folder: Path) -> list[str]:
    """What is wrong with the locks of a folder; every `.in` needs its lock."""
    wrong = [problem for path in sorted(folder.glob("*.txt")) for problem in read_lock(path)[1]]
    missing = [path.name for path in sorted(folder.glob("*.in")) if not path.with_suffix(".txt").exists()]
    return wrong + [f"{name}: has no lock; `make lock` makes it" for name in missing]
