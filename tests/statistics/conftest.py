"""The rates that were found are printed at the end, also when every test passes and on several workers."""

import pytest

from tests.statistics.rates import RATE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests noted under RATE."""
    reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, [])]
    lines = [str(line) for each in reports for name, line in each.user_properties if name == RATE]
    if lines:
        terminalreporter.section("false alarms, looking after every batch")
        for line in lines:
            terminalreporter.write_line(line)
