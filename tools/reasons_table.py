"""Keeps the reasons in `docs/gate.md` equal to the code: `python -m tools.reasons_table --check` or `--write`."""

import argparse
import sys
from pathlib import Path

from libs.trading.reasons import Kind, Reason

PAGE = Path(__file__).parents[1] / "docs" / "gate.md"
BEGIN = "<!-- reasons: written by `make fix` from libs/trading/reasons.py -->"
END = "<!-- end of the reasons -->"
DENIES = {Kind.POLICY: "in enforce", Kind.HARD: "in every mode", Kind.NOTE: "never"}


def table() -> str:
    """The reasons as a table, in the order of the code."""
    lines = ["| code | denies entries | when |", "|---|---|---|"]
    lines += [f"| `{reason.value}` | {DENIES[reason.kind]} | {reason.meaning} |" for reason in Reason]
    return "\n".join(lines)


def with_table(page: str) -> str:
    """A page with its table written anew. Raises `ValueError` when it has no place for one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page must hold the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    """Check or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="fail when the page differs from the code")
    action.add_argument("--write", action="store_true", help="write the table anew")
    page = PAGE.read_text(encoding="utf-8")
    wanted = with_table(page)
    if parser.parse_args().write:
        PAGE.write_text(wanted, encoding="utf-8")
    elif page != wanted:
        sys.exit("the reasons in docs/gate.md differ from libs/trading/reasons.py: run `make fix` and commit it")


if __name__ == "__main__":
    main()
