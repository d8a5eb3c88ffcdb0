"""How a command can end, and the two ways in which it says no."""

from typing import Final

from libs.evaluation.cases.case import CaseError
from libs.evaluation.cases.dataset import DatasetError
from libs.judgement.thresholds import RulesError
from libs.llm.errors import LLMError
from libs.settings import SettingsError
from libs.upstreams.config import UpstreamConfigError

PASSED: Final = 0
FAILED: Final = 1
USAGE: Final = 2
MISSED: Final = 3
INTERRUPTED: Final = 130


class UsageRefused(Exception):
    """What was asked for cannot be done as it was said; the message says what to say instead. Exit code 2."""


class HarnessFailed(Exception):
    """Something that an evaluation stands on is away or broken: no result about any prompt. Exit code 1."""


AS_USAGE = (UsageRefused, DatasetError, CaseError, SettingsError, LLMError, RulesError, UpstreamConfigError)
"""What the caller gave and can mend: arguments, data set, settings, and the files that are evaluated."""


def code_of(error: BaseException) -> int:
    """The exit code that an exception ends in."""
    if isinstance(error, BaseExceptionGroup):
        return max(code_of(inner) for inner in error.exceptions)  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType,reportUnknownMemberType]
    return USAGE if isinstance(error, AS_USAGE) else FAILED
