"""What models and headlines wrote, as text that cannot deceive its reader: hidden characters are shown, none acts."""

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Final

from markupsafe import Markup, escape

LONGEST: Final = 2000
"""Characters of one text that a page shows; the rest stands in `rows.jsonl`."""
_MOST_WORDS: Final = 500
_ALIKE: Final = 0.4
"""Texts less alike than this are shown without marks: all of it would be marked."""
_HIDDEN: Final = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SELECTORS: Final = re.compile("[\ufe00-\ufe0f\u180b-\u180f\U000e0100-\U000e01ef\u115f\u1160\u3164\uffa0\u034f]")
_WORD: Final = re.compile(r"\w+|\s+|[^\w\s]")
_TAGS: Final = range(0xE0020, 0xE007F)
"""Unicode's tag characters: a copy of ASCII that nobody sees."""


def is_hidden(character: str) -> bool:
    """Whether a reader would not see it, or it would act on what stands beside it."""
    if character in "\n\t" or (character.isascii() and character.isprintable()):
        return False
    if unicodedata.category(character) in _HIDDEN or _SELECTORS.match(character) is not None:
        return True
    return character.isspace()  # other spaces than the usual one


def plain(text: str, *, longest: int = LONGEST, lines: bool = False) -> str:
    """A text for a terminal or an XML file: what is hidden as `<U+202E>`, in one line unless `lines`."""
    kept = "".join(_plainly(each, lines) for each in text[:longest])
    return kept if len(text) <= longest else f"{kept} … ({len(text) - longest:,} characters more)"


def _plainly(character: str, lines: bool) -> str:
    if character in "\n\t":
        return character if lines else " "
    return f"<U+{ord(character):04X}>" if is_hidden(character) else character


def visible(text: str, *, longest: int = LONGEST) -> Markup:
    """A text as HTML: escaped, each run of hidden characters as a small sign that says what hides there."""
    return _shown(text[:longest]) + _rest(text, longest)


def _rest(text: str, longest: int) -> Markup:
    rest = len(text) - longest
    return Markup('<span class="more"> … {:,} characters more</span>').format(rest) if rest > 0 else Markup("")


def _shown(text: str) -> Markup:
    return Markup("").join(_sign(run) if hidden else escape(run) for hidden, run in _runs(text))


def _runs(text: str) -> list[tuple[bool, str]]:
    """The text in runs of hidden and of visible characters."""
    flags = [is_hidden(each) for each in text]
    edges = [0, *(at for at, (one, other) in enumerate(pairwise(flags), start=1) if one != other), len(text)]
    return [(flags[low], text[low:high]) for low, high in pairwise(edges) if low < high]


def _sign(run: str) -> Markup:
    tags = "".join(chr(ord(each) - 0xE0000) for each in run if ord(each) in _TAGS)
    codes = " ".join(f"U+{ord(each):04X}" for each in run[:3])
    said = f"hidden: {tags}" if tags else f"{codes} and {len(run) - 3} more" if len(run) > 3 else codes
    return Markup('<span class="hid">{}</span>').format(said)


def side_by_side(texts: Sequence[str]) -> list[Markup]:
    """Texts as HTML, the words marked in which they differ: each of the others from the first, it from the second."""
    if len(texts) < 2:
        return [visible(text) for text in texts]
    words = [_WORD.findall(text[:LONGEST]) for text in texts]
    if max(len(each) for each in words) > _MOST_WORDS:
        return [visible(text) for text in texts]
    first = _marked(words[0], words[1], whole=texts[0])
    return [first, *(_marked(own, words[0], whole=text) for own, text in zip(words[1:], texts[1:], strict=True))]


def _marked(own: Sequence[str], other: Sequence[str], *, whole: str) -> Markup:
    found = SequenceMatcher(None, own, other, autojunk=False)
    if found.ratio() < _ALIKE:
        return visible(whole)
    parts = [(kind == "equal", _shown("".join(own[low:high]))) for kind, low, high, _, _ in found.get_opcodes()]
    made = Markup("").join(part if same else Markup("<mark>{}</mark>").format(part) for same, part in parts if part)
    return made + _rest(whole, LONGEST)
