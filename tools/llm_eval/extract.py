"""`run_eval.py extract`: make a data set from what the desk has stored, or from bars. `docs/datasets.md` tells how."""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from libs.calendar import ALWAYS, open_calendar
from libs.db.opening import open_database
from libs.evaluation.cases.case import EvalCase
from libs.evaluation.cases.dataset import CaseWriter
from libs.evaluation.cases.reading import JSONL
from libs.judgement.rules import RULES_FILE, Rules
from libs.replay.check_command import moment
from libs.settings import load
from services.forecast.feed.file import read_bars
from services.forecast.feed.replay import load_bundled
from services.forecast.feed.table import BarTable
from services.forecast.feed.types import MIN_BARS, FeedError
from services.forecast.settings import ForecastSettings
from tools.llm_eval.bundled import AS_REPLAYED
from tools.llm_eval.extract_bars import BarCases
from tools.llm_eval.extract_stored import Wanted, cases, draw
from tools.llm_eval.extract_strata import Taken, balanced
from tools.llm_eval.refusal import PASSED, UsageRefused

USUAL_LIMIT: Final = 1000
MOST: Final = 100_000
USUAL_SEED: Final = 1
STORED: Final = "stored"
REPLAY: Final = "replay"
FILE: Final = "file:"
EVER: Final = datetime(1, 1, 2, tzinfo=UTC)
GATHERING_S: Final = 300.0
"""How long it may take to find out which forecasts of a period there are, in seconds."""
TO_CHOOSE_FROM: Final = 3
MOST_TO_CHOOSE_FROM: Final = 3000
"""Cases from bars that are made to choose from: three for each one wanted, but at most so many more than wanted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What an extraction is told."""
    parser.add_argument("--out", type=out_file, required=True, metavar="F.jsonl", help="the data set to write")
    parser.add_argument(
        "--from",
        dest="source",
        type=source,
        default=STORED,
        metavar="WHERE",
        help="stored: forecasts in the database, with what came of them (default); replay: the bundled bars; "
        "file:PATH: bars as FORECAST_FEED=file:PATH reads them",
    )
    parser.add_argument(
        "--since",
        type=moment,
        help="forecasts written, or bars that ended, from then on: yesterday, 24h, 2026-01-31 (UTC)",
    )
    parser.add_argument("--until", type=moment, help="and before then (default: now)")
    parser.add_argument(
        "--limit", type=at_least_one, default=USUAL_LIMIT, help=f"at most so many cases (default: {USUAL_LIMIT})"
    )
    parser.add_argument("--seed", type=int, default=USUAL_SEED, help=f"draws the cases (default: {USUAL_SEED})")
    parser.add_argument(
        "--balance",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="as many cases of each kind of error as of the rest, where there are as many (default), or as they come",
    )


def out_file(word: str) -> Path:
    """A file to write. Raises `argparse.ArgumentTypeError`."""
    path = Path(word)
    if path.suffix != JSONL:
        raise argparse.ArgumentTypeError(f"{word}: a data set is written as JSONL; give a name that ends in {JSONL}")
    return path


def source(word: str) -> str:
    """Where cases come from. Raises `argparse.ArgumentTypeError`."""
    if word in {STORED, REPLAY} or (word.startswith(FILE) and word != FILE):
        return word
    raise argparse.ArgumentTypeError(f"{word!r} is no source: give stored, replay or file:PATH")


def at_least_one(word: str) -> int:
    """How many cases. Raises `argparse.ArgumentTypeError`."""
    try:
        number = int(word)
    except ValueError:
        number = 0
    if not 1 <= number <= MOST:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of cases: give one from 1 to {MOST}")
    return number


async def extract(options: argparse.Namespace) -> int:
    """Make a data set and say what is in it; returns 0.

    Raises `UsageRefused` where there is nothing to take or nowhere to put it, `DatabaseError`, `SettingsError`,
    `CalendarError`, `RulesError`, `CaseError`, `OSError`. Nothing is written then.
    """
    path: Path = options.out
    check_place(path)
    rules = Rules.load(RULES_FILE)
    with CaseWriter(path) as writer:
        content = Content(rules)
        if options.source == STORED:
            taken = await write_stored(options, rules, lambda case: content.take(case, writer))
        else:
            found, taken = from_bars(options, rules)
            for case in found:
                content.take(case, writer)
        if not writer.count:
            raise UsageRefused("\n".join([nothing(options), *taken.lines()]))
        writer.finish()
    lines = [f"{path}: {writer.count} cases, sha256 {writer.sha256}", *taken.lines(), *content.lines()]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return PASSED


def check_place(path: Path) -> None:
    """Refuse a place where no new file can be. Raises `UsageRefused`."""
    if path.exists():
        raise UsageRefused(f"--out {path}: is there already, and may have been evaluated; choose another name")
    if not path.parent.is_dir():
        raise UsageRefused(f"--out {path}: there is no folder {path.parent}")


@dataclass(slots=True)
class Content:
    """What is in the cases that were taken."""

    rules: Rules
    allow: int = 0
    deny: int = 0
    outcomes: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])

    def take(self, case: EvalCase, writer: CaseWriter) -> None:
        """Write a case and count it."""
        writer.add(case)
        self.allow += case.target is True
        self.deny += case.target is False
        self.outcomes += case.realised is not None
        self.reasons.update(self.rules.judge(case.inputs, case.feed).reasons)

    def lines(self) -> list[str]:
        """What to print."""
        reasons = ", ".join(f"{name} {count}" for name, count in self.reasons.most_common())
        found = [
            f"by the rules in code right is allow for {self.allow}, deny for {self.deny}"
            + (f" ({reasons})" if reasons else ""),
            f"what came of it is known for {self.outcomes}",
        ]
        if not self.allow:
            found.append(
                "no case is to be allowed, so nothing can be wrongly blocked; rules that lack their data are switched "
                "off by the feed's family in configs/rules.yaml"
            )
        return found


async def write_stored(options: argparse.Namespace, rules: Rules, take: Callable[[EvalCase], None]) -> Taken:
    """Take cases from stored forecasts, by market time, without holding them."""
    wanted = Wanted(
        since=options.since or EVER,
        until=options.until or datetime.now(UTC),
        limit=options.limit,
        seed=options.seed,
        balance=options.balance,
    )
    async with open_database(application="eval-extract", pool_size=1, command_timeout=GATHERING_S) as engine:
        drawn, taken = await draw(engine, wanted)
        async for case in cases(engine, drawn, rules=rules, taken=taken):
            take(case)
    return taken


def from_bars(options: argparse.Namespace, rules: Rules) -> tuple[list[EvalCase], Taken]:
    """Cases from bars, by market time. Raises `UsageRefused` for a file that is no bars."""
    settings = load(ForecastSettings)
    table, feed = bars_of(options.source, settings)
    maker = BarCases(table, rules, horizon=settings.horizon, steps=settings.parsed_horizon.steps)
    calendar = open_calendar(settings.calendar)
    since, until = options.since or EVER, options.until or datetime.now(UTC)
    places = [place for place in maker.places() if since <= place.as_of < until]
    random.Random(options.seed).shuffle(places)  # noqa: S311 - a sample, not a secret
    made = options.limit
    if options.balance:
        made = min(TO_CHOOSE_FROM * options.limit, options.limit + MOST_TO_CHOOSE_FROM)
    made_cases = (
        maker.case(maker.forecast(place, maker.history(place)), feed=feed, calendar=calendar) for place in places[:made]
    )
    return balanced(made_cases, limit=options.limit, seed=options.seed)


def bars_of(where: str, settings: ForecastSettings) -> tuple[BarTable, str]:
    """The bars of a source, and the feed its cases are judged under. Raises `UsageRefused`."""
    try:
        if where == REPLAY:
            return load_bundled(settings.tickers), AS_REPLAYED
        path = Path(where.removeprefix(FILE))
        series = read_bars(path, around_the_clock=settings.calendar == ALWAYS)
    except FeedError as error:
        raise UsageRefused(str(error)) from error
    unknown = [ticker for ticker in settings.tickers if ticker not in series]
    if unknown:
        raise UsageRefused(f"FORECAST_TICKERS: {path} has no {', '.join(unknown)}")
    return BarTable({ticker: series[ticker] for ticker in settings.tickers or series}), f"{FILE}{path.name}"


def nothing(options: argparse.Namespace) -> str:
    """Why there is nothing to take, in words."""
    period = " ".join(
        f"{name} {moment.isoformat()}"
        for name, moment in (("since", options.since), ("until", options.until))
        if moment is not None
    )
    if options.source == STORED:
        return f"no judged forecast is stored {period}".rstrip() + ": `make run` makes some; --from replay needs none"
    return f"{options.source}: no bar {period}".rstrip() + f" has {MIN_BARS} bars up to it and its horizon after it"
