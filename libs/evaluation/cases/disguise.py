"""Texts rewritten so that nothing in them tells which ticker, which year or which price level they speak of."""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, cast

from libs.llm.untrusted import clean_text

FIRST_LETTERS: Final = "QXZ"
LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"
INVENTED_LENGTH = 5
LONGEST_QUOTE = 10
LEAST_IN_ANY_CASE = 3
"""Letters of a ticker from which on it is found in small letters too; shorter ones are words of their own."""
UNCUT = 1 << 30
SAID_WITHIN = 60
"""Characters before a number that are looked at for what it is."""
PIVOT_YEAR = 70
"""Years of two digits from this one on are of the last century."""
YEAR_DAYS = 365.25
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "AAPL": ("Apple Inc.", "Apple"),
    "FB": ("Facebook Inc.", "Facebook"),
    "GOOG": ("Google Inc.", "Google"),
    "IBM": ("International Business Machines", "Big Blue"),
    "MSFT": ("Microsoft Corporation", "Microsoft"),
}
"""Names that give the bundled tickers away. Of others only those that a fact named `company` holds are known."""

MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
MONTH_OF: Final = {name[:3].lower(): number for number, name in enumerate(MONTHS, start=1)}
NEAR_WITH_SIGN = 10.0
NEAR_WITH_WORD = 3.0
"""A number counts as a price where it is within this many times the last price."""
PRICE_WORDS: Final = frozenset(
    {
        *("@", "above", "around", "at", "below", "close", "closed", "from", "high", "hit", "hits"),
        *("between", "last", "level", "low", "near", "of", "open", "opened", "opens", "over", "past", "price"),
        *("target", "to", "trade", "traded", "trades", "trading", "under"),
    }
)
LAST_DIGITS = re.compile(r"(\d{4}|\d{2})$")
_PRICE_WORD = re.compile(r"([A-Za-z]+|@)\W{0,2}$")
_BETWEEN = re.compile(r"between\W+(?:[A-Z]{3} )?[\d.,]+(?: [A-Z]{3})? and\W*$", re.IGNORECASE)
_CURRENCY = r"(?:USD|EUR|GBP|JPY|CHF)"
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
_AMOUNTS = (
    r"%|percent|pct|bps|basis|times|sessions?|days?|weeks?|months?|years?|hours?|minutes?|thousand|million"
    r"|billion|trillion|[kmbtx]\b|bn\b|mn\b|-day|-session"
)
_UNITS = rf"(?i:{_AMOUNTS}|shares?|points?)"
_BEFORE_YEAR = r"(?i:in|since|during|until|till|before|after|early|mid|late|of)"
_TOKEN = re.compile(
    rf"""
    (?<![\w])(?:
      (?P<iso>\d{{4}}(?P<mark>[-/.])\d{{2}}(?P=mark)\d{{2}})(?!\d)
    | (?P<compact>(?:19|20)\d{{6}})(?![\w%]|[.,]\d)
    | (?P<slashed>\d{{1,2}}/\d{{1,2}}/(?:\d{{4}}|\d{{2}}))(?![\d/])
    | (?P<dotted>\d{{1,2}}\.\d{{1,2}}\.(?:\d{{4}}|\d{{2}}))(?![\d%]|\.\d)
    | (?P<dashed>\d{{1,2}}-{_MONTH}-(?:\d{{4}}|\d{{2}}))(?!\d)
    | (?P<month_first>{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?)(?![\d%]|[.,]\d)
    | (?P<day_first>\d{{1,2}}(?:st|nd|rd|th)?\s+{_MONTH}(?:,?\s+\d{{4}})?)(?!\d)
    | (?P<month_year>{_MONTH}\s+\d{{4}})(?!\d)
    | (?P<fiscal>[FC]Y\s?'?\d{{2}}(?:\d{{2}})?)(?!\d)
    | (?P<quarter>(?:[1-4]Q|[12]H|(?:Q[1-4]|H[12])\s?['/-])\s?'?(?:(?:19|20)\d{{2}}|\d{{2}}))(?=[EAF]?\b)
    | (?P<estimate>(?:19|20)\d{{2}}(?=[EAF]\b))
    | (?P<year>{_BEFORE_YEAR}\s(?:19|20)\d{{2}})(?!\s?(?i:{_AMOUNTS})|\w|[.,]?\d)
    )
    | (?P<sign>[$€£¥]\s?|\b{_CURRENCY}\s?)?(?<![\d.,])(?:(?<=\b{_CURRENCY})|(?<!\w))
      (?P<number>\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:\.\d+)?)
      (?:(?=(?P<behind>\s?(?:{_CURRENCY}|dollars?)\b))|(?!\s?(?:{_UNITS})|\w|[.,]?\d))
    """,
    re.VERBOSE,
)


@lru_cache(maxsize=4096)
def invented(ticker: str, seed: int) -> str:
    """A ticker that means nothing: the same for the same ticker and seed. A pair keeps what it is quoted in."""
    base, slash, quote = ticker.partition("/")
    if len(quote) > LONGEST_QUOTE:
        slash = quote = ""
    draw = random.Random(f"{seed}/ticker/{base}")  # noqa: S311 - a disguise, not a secret
    name = draw.choice(FIRST_LETTERS) + "".join(draw.choices(LETTERS, k=INVENTED_LENGTH - 1))
    while name in ticker:
        name += draw.choice(LETTERS)
    return f"{name}{slash}{quote}"


def words_of(ticker: str) -> tuple[str, ...]:
    """What stands for a ticker in a text, longest first: itself, and the part before `/` or `.`."""
    parts = (ticker, ticker.partition("/")[0], re.split(r"[./:]", ticker)[0])
    return tuple(sorted({part for part in parts if part}, key=lambda part: (-len(part), part)))


def names_pattern(words: tuple[str, ...], names: tuple[str, ...]) -> re.Pattern[str]:
    """Finds a ticker and its company's names in any case; a ticker of two letters as it is written, or behind a `$`."""
    exact = "|".join(
        rf"(?i:{re.escape(word)})" if len(word) >= LEAST_IN_ANY_CASE else re.escape(word) for word in words
    )
    tagged = rf"(?<=[$#])(?i:{exact})"
    named = [rf"(?i:{re.escape(name)})" for name in names if name]
    return re.compile(rf"(?<![^\W_])(?:{'|'.join([exact, tagged, *named])})(?![^\W_])")


@dataclass(frozen=True, slots=True)
class Disguise:
    """What hides one case: its ticker's invented name, the span its dates move by, the factor on its prices."""

    ticker: str
    invented: str
    pattern: re.Pattern[str]
    span: timedelta
    factor: float
    as_of: datetime
    last_price: float

    @property
    def years(self) -> int:
        """The span in whole years."""
        return round(self.span.days / YEAR_DAYS)

    def headline(self, headline: str) -> str:
        """A headline rewritten as the prompts would show it: cleaned first, so that no hidden sign hides a name."""
        return self.text(clean_text(headline, max_chars=UNCUT))

    def text(self, text: str) -> str:
        """A text rewritten: dates and years moved, prices rescaled, and last the ticker and its names replaced."""
        moved = _TOKEN.sub(lambda match: self._token(match, text), text)
        return self.pattern.sub(self._name, moved)

    def _name(self, match: re.Match[str]) -> str:
        whole = match[0].upper() == self.ticker.upper()
        return self.invented if whole else self.invented.partition("/")[0]

    def value(self, value: object) -> object:
        """A fact's value rewritten: every text in it, and a text that is a moment as a whole moved exactly."""
        if isinstance(value, str):
            return self._moment(value) or self.text(value)
        if isinstance(value, list):
            return [self.value(entry) for entry in cast("list[Any]", value)]
        if isinstance(value, dict):
            return {name: self.value(entry) for name, entry in cast("dict[str, Any]", value).items()}
        return value

    def _moment(self, text: str) -> str | None:
        try:
            if "T" in text or ":" in text:
                return (datetime.fromisoformat(text) + self.span).isoformat()
            return (date.fromisoformat(text) + self.span).isoformat()
        except (ValueError, OverflowError):
            return None

    def _token(self, match: re.Match[str], text: str) -> str:
        kind = next((name for name in READERS if match[name]), "")
        if kind:
            try:
                return READERS[kind](self, match[kind])
            except (ValueError, OverflowError):
                return match[0]  # not a date after all, such as 99/99/9999
        return self._number(match, text)

    def _number(self, match: re.Match[str], text: str) -> str:
        sign, number = match["sign"] or "", match["number"]
        value = float(number.replace(",", ""))
        decimals = len(number.partition(".")[2])
        before = text[max(0, match.start() - SAID_WITHIN) : match.start()]
        signed = sign != "" or match["behind"] is not None
        if (
            (signed and self._near(value, NEAR_WITH_SIGN))
            or (said_as_price(before) and self._near(value, NEAR_WITH_WORD))
            or (decimals > 0 and value == round(self.last_price, decimals))
        ):
            return f"{sign}{value * self.factor:{',' if ',' in number else ''}.{decimals}f}"
        if not sign and number.isdigit() and len(number) == 4 and number[:2] in {"19", "20"}:
            return str(int(number) + self.years)
        return match[0]

    def _near(self, value: float, times: float) -> bool:
        return self.last_price / times <= value <= self.last_price * times

    def iso(self, text: str) -> str:
        """2012-11-20, 2012/11/20 or 2012.11.20."""
        mark = text[4]
        return (date.fromisoformat(text.replace(mark, "-")) + self.span).isoformat().replace("-", mark)

    def compact(self, text: str) -> str:
        """20121120."""
        return (date.fromisoformat(text) + self.span).strftime("%Y%m%d")

    def slashed(self, text: str) -> str:
        """11/20/2012, or 20/11/2012 where the first number is no month; 11/20/12."""
        return self._numbers(text, "/", month_first=int(text.split("/")[0]) <= len(MONTHS))

    def dotted(self, text: str) -> str:
        """20.11.2012 or 20.11.12."""
        return self._numbers(text, ".", month_first=False)

    def _numbers(self, text: str, mark: str, *, month_first: bool) -> str:
        first, second, year = text.split(mark)
        month, day = (first, second) if month_first else (second, first)
        moved = date(full_year(year), int(month), int(day)) + self.span
        parts = (moved.month, moved.day) if month_first else (moved.day, moved.month)
        return f"{parts[0]:0{len(first)}d}{mark}{parts[1]:0{len(second)}d}{mark}{short_year(moved.year, year)}"

    def dashed(self, text: str) -> str:
        """20-Nov-12 or 20-Nov-2012."""
        day, month, year = text.split("-")
        moved = date(full_year(year), MONTH_OF[month[:3].lower()], int(day)) + self.span
        return f"{moved.day}-{MONTHS[moved.month - 1][:3]}-{short_year(moved.year, year)}"

    def worded(self, text: str) -> str:
        """Nov 20, 2012, or 20 November; a year that is not said is that of `as_of`."""
        words = [word.strip(".,") for word in text.split()]
        number, name = (words[1], words[0]) if words[0][0].isalpha() else (words[0], words[1])
        year = int(words[2]) if len(words) > 2 else self.as_of.year
        moved = date(year, MONTH_OF[name[:3].lower()], int(re.sub(r"\D", "", number))) + self.span
        month = MONTHS[moved.month - 1] if len(name) > 4 else MONTHS[moved.month - 1][:3]
        said = f"{month} {moved.day}" if words[0][0].isalpha() else f"{moved.day} {month}"
        return f"{said}{',' if ',' in text else ''} {moved.year}" if len(words) > 2 else said

    def month_year(self, text: str) -> str:
        """November 2012."""
        name, year = text.split()
        return f"{name} {int(year) + self.years}"

    def year_behind(self, text: str) -> str:
        """FY2012, CY12, 3Q12, Q3'12, 2012 of 2012E, in 2012: the year stands at the end."""
        digits = LAST_DIGITS.findall(text)[0]
        moved = full_year(digits) + self.years
        return f"{text[: -len(digits)]}{short_year(moved, digits)}"


def said_as_price(before: str) -> bool:
    """Whether what stands before a number says that it is a price."""
    word = _PRICE_WORD.search(before)
    if word is None:
        return False
    return word[1].lower() in PRICE_WORDS or _BETWEEN.search(before) is not None


def full_year(digits: str) -> int:
    """The year of two or four digits."""
    if len(digits) > 2:
        return int(digits)
    return int(digits) + (1900 if int(digits) >= PIVOT_YEAR else 2000)


def short_year(year: int, like: str) -> str:
    """A year in as many digits as another."""
    return f"{year % 100:02d}" if len(like) == 2 else str(year)


READERS: Final[Mapping[str, Callable[[Disguise, str], str]]] = {
    "iso": Disguise.iso,
    "compact": Disguise.compact,
    "slashed": Disguise.slashed,
    "dotted": Disguise.dotted,
    "dashed": Disguise.dashed,
    "month_first": Disguise.worded,
    "day_first": Disguise.worded,
    "month_year": Disguise.month_year,
    "fiscal": Disguise.year_behind,
    "quarter": Disguise.year_behind,
    "estimate": Disguise.year_behind,
    "year": Disguise.year_behind,
}
