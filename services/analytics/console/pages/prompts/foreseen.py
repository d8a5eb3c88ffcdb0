"""What the api would refuse for want of a reason, known before it is asked; and its words as the console says them."""

import re

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.commands.plans import Change, Facts, promotion, ramp
from libs.llm.commands.refusal import CommandRefused
from libs.llm.commands.standing import made_elsewhere
from libs.llm.commands.turning import OTHER_GROUND, facts_of
from libs.llm.errors import LLMError
from services.analytics.console.pages.prompts.queries import files_now

# The api speaks as the command line does, whose flags are fields here.
FIELDS = (
    (re.compile(r"promote \S+ VERSION --reason [^\s;,]+"), "promote it here, with a reason under Why"),
    (re.compile(r" with --reason \S+ \(make: REASON=\S+\)"), ": fill in Why"),
    (re.compile(r": --further \(make: FURTHER=1\)"), ", tick the box beside Roll back"),
)


def in_the_console(words: str) -> str:
    """What the api said, with the fields of the form in place of the flags of the command line."""
    for flag, field in FIELDS:
        words = flag.sub(field, words)
    return words


async def refusal(engine: AsyncEngine, key: str, version: str, *, percent: int | None) -> str:
    """Why a version cannot be promoted, or ramped to so many per cent, without a reason.

    Empty where it can, and where it is not known here: then the api says it.
    """
    try:
        files = await files_now()
        prompt = files.registry.version(key, version)
        async with engine.connect() as connection:
            facts = await facts_of(connection, files, prompt)
        change = promotion(facts, prompt, reason="") if percent is None else ramp(facts, prompt, percent, reason="")
        return _other_ground(facts) if isinstance(change, Change) else ""
    except CommandRefused as error:
        return in_the_console(str(error))
    except (LLMError, SQLAlchemyError, OSError):
        return ""


def _other_ground(facts: Facts) -> str:
    return "" if made_elsewhere(facts.in_force) is None else in_the_console(OTHER_GROUND)
