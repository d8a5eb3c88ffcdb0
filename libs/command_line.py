"""A command line whose mistakes are one line, in the words of who typed it: most come by `make`, as variables."""

import argparse
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Refuses without a usage text, and names an option as the variable of `make` too: SINCE for --since."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and end with 2."""
        options = [word for action in self._actions for word in action.option_strings if word.startswith("--")]
        for option in sorted(options, key=len, reverse=True):
            message = message.replace(f"argument {option}:", f"{variable(option)} ({option}):")
        self.exit(2, f"{message}\n")


def variable(option: str) -> str:
    """What `make` calls an option: REASON for --reason."""
    return option.removeprefix("--").replace("-", "_").upper()


def asked_at_the_terminal(question: str) -> str:
    """What the person at the terminal answers, empty where there is no terminal or no answer.

    The question goes to stderr: stdout may be on its way into a file.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return ""
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip()
