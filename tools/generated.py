"""Files made from the code: written by `make fix`, compared by `make check`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def write_or_check(path: Path, make: Callable[[], str], *, source: str) -> None:
    """The command line of a tool that makes `path`: `--write` it, or `--check` that it is what `make` gives.

    `source` names what it is made of, for who is told that the two differ.
    """
    parser = argparse.ArgumentParser(description=f"{path.name}, made of {source}")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="fail when the file differs")
    action.add_argument("--write", action="store_true", help="write the file anew")
    writing = parser.parse_args().write
    wanted = make()
    if writing:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != wanted:
        sys.exit(f"{path.name} differs from {source}: run `make fix` and commit it")


def replaced(page: str, table: str, *, begin: str, end: str) -> str:
    """A page with what stands between two lines written anew. Raises `ValueError` when it does not hold the lines."""
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the page must hold the lines {begin} and {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"
