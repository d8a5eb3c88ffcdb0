"""The prompts' tool for people: `python -m libs.llm.registry COMMAND`, and the `make` targets in front of it."""

from libs.llm.commands.command_line import main

__all__ = ["main"]
