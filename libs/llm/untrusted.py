"""Text from outside (headlines, posts) made fit to stand as data in a prompt.

Cleaning is idempotent and keeps ordinary text as it is: NFKC, then control, format (zero-width, bidirectional,
variation selectors, tags), surrogate, private-use and unassigned characters go, runs of white space become one space,
the marks by which chat templates separate turns are broken up, and the length is capped.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from confusable_homoglyphs import confusables

DEFAULT_MAX_CHARS = 300
DEFAULT_MAX_TEXTS = 20
LONGEST_TICKER = 6
FLAG_NAME = "look_alike_tickers"

_REMOVED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f\u180b-\u180f\U000e0100-\U000e01ef\u115f\u1160\u3164\uffa0\u034f]")
_WHITE_SPACE = re.compile(r"\s+")
# <|im_start|>, <s>, </s>, <<SYS>>, <start_of_turn>, [INST]: engines may read these as turns even inside a JSON string.
_TURN_MARK = re.compile(r"<(?=[|/<a-zA-Z_])|\[(?=/?[A-Z_]{3,}\])")
_WORD = re.compile(r"[^\W_]+(?:\.[^\W_]+)?")
_ALIKE_IN_ASCII = str.maketrans({"0": "O", "1": "I", "l": "I", "5": "S", "8": "B"})


def clean_text(text: str, *, max_chars: int = DEFAULT_MAX_CHARS) -> str:
    """One text, cleaned and cut to `max_chars` characters. Never raises, and cleaning twice changes nothing more."""
    if text.isascii() and text.isprintable():
        folded = text
    else:
        spaced = "".join(" " if char.isspace() else char for char in text)
        folded = _without_hidden(unicodedata.normalize("NFKC", _without_hidden(spaced)))
    return _cut(_TURN_MARK.sub(_break_mark, _WHITE_SPACE.sub(" ", folded).strip()), max_chars)


def _without_hidden(text: str) -> str:
    kept = "".join(char for char in text if unicodedata.category(char) not in _REMOVED_CATEGORIES)
    return _VARIATION_SELECTORS.sub("", kept)


def _break_mark(match: re.Match[str]) -> str:
    return f"{match.group()} "


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[:max_chars].rstrip()


def look_alike_tickers(texts: Iterable[str], *, ticker: str = "") -> list[str]:
    """Words that look like a ticker but are spelt with other letters, in order of appearance, each once.

    Two kinds: words of capitals in which a foreign letter stands for a Latin one (a Cyrillic A in AAPL), and words
    that read as `ticker` only because digits or small letters stand for its letters (lBM, G00G).
    """
    found: dict[str, None] = {}
    for text in texts:
        for word in _WORD.findall(text):
            if len(word) <= LONGEST_TICKER and _is_look_alike(word, ticker):
                found[word] = None
    return list(found)


def _is_look_alike(word: str, ticker: str) -> bool:
    skeleton = word if word.isascii() else "".join(_latin(char) for char in word)
    if not word.isascii() and len(word) > 1 and skeleton.isascii() and skeleton.isupper():
        return True
    return bool(ticker) and word != ticker and skeleton.translate(_ALIKE_IN_ASCII) == ticker.translate(_ALIKE_IN_ASCII)


@lru_cache(maxsize=4096)
def _latin(char: str) -> str:
    """The ASCII letter that `char` is easily taken for, or `char` itself."""
    if char.isascii():
        return char
    found: Any = confusables.is_confusable(char, greedy=True, preferred_aliases=["latin"])  # pyright: ignore[reportUnknownMemberType] - untyped
    if not found:
        return char
    letters = [glyph["c"] for entry in found for glyph in entry["homoglyphs"] if glyph["c"].isascii()]
    same_case = [letter for letter in letters if len(letter) == 1 and letter.isupper() == char.isupper()]
    return (same_case or [char])[0]


def clean_inputs(
    inputs: Mapping[str, Any], *, untrusted: Iterable[str], schema: Mapping[str, Any], ticker: str = ""
) -> dict[str, Any]:
    """The untrusted inputs, cleaned, and under `look_alike_tickers` the suspicious words among them, if any.

    Caps come from the schema (`maxLength` of a text, `maxItems` of a list), else the defaults; a list keeps its first
    entries, so callers order by importance. Texts that become empty are left out. Values that are not texts stay as
    they are, for the schema to judge.
    """
    properties: Mapping[str, Any] = schema.get("properties", {})
    cleaned = {name: _clean_value(inputs[name], properties.get(name, {})) for name in untrusted if name in inputs}
    suspects = look_alike_tickers(_texts(cleaned.values()), ticker=ticker)
    return {**cleaned, FLAG_NAME: suspects} if suspects else cleaned


def _clean_value(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return clean_text(value, max_chars=int(schema.get("maxLength", DEFAULT_MAX_CHARS)))
    if isinstance(value, list | tuple):
        entries: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType] - values of any inputs
        item_schema: Any = schema.get("items", {})
        cleaned = [_clean_value(entry, item_schema) for entry in entries]
        return [entry for entry in cleaned if entry != ""][: int(schema.get("maxItems", DEFAULT_MAX_TEXTS))]
    return value


def _texts(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (entry for entry in value if isinstance(entry, str))  # pyright: ignore[reportUnknownVariableType] - filtered here
