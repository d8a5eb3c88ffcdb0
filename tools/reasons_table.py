"""Keeps the reasons in `docs/gate.md` equal to the code: `python -m tools.reasons_table --check` or `--write`."""

from pathlib import Path

from libs.trading.reasons import Kind, Reason
from tools.generated import replaced, write_or_check

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
    return replaced(page, table(), begin=BEGIN, end=END)


def main() -> None:
    """Check or write the page."""
    write_or_check(PAGE, lambda: with_table(PAGE.read_text(encoding="utf-8")), source="libs/trading/reasons.py")


if __name__ == "__main__":
    main()
