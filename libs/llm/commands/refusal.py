"""The one way in which a command says no."""

from libs.llm.errors import LLMError


class CommandRefused(LLMError):
    """A command is not carried out; the message says why and what to do instead."""
