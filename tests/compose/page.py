"""The commands of a page of docs, by section, house and step, as they stand there.

A block of commands that is played through begins with ```` ```sh HOUSE STEP ````: HOUSE is `run`, `compose` or `both`,
STEP a word such as `look`. GitHub reads the first word only.
"""

import re
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"^```sh (?P<house>run|compose|both) (?P<step>[a-z-]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """Commands that belong together."""

    house: str
    step: str
    text: str


class Page:
    """One page of docs."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        parts = SECTION.split(self.text)
        self.sections = dict(zip(parts[1::2], parts[2::2], strict=True))

    def blocks(self, section: str) -> list[Block]:
        """Every block of a section that is played through."""
        return [Block(**found.groupdict()) for found in BLOCK.finditer(self.sections[section])]

    def commands(self, section: str, step: str, *, house: str) -> str:
        """The one block of a step for a house."""
        found = [each.text for each in self.blocks(section) if each.step == step and each.house in {house, "both"}]
        assert len(found) == 1, f"{section!r} has {len(found)} blocks {step!r} for {house!r}"
        return found[0]
