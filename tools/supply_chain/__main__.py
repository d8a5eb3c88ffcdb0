"""`python -m tools.supply_chain`: every check of what we take from others, a line each, and one exit code.

0: all is well. 1: something is wrong. 3: nothing is wrong that could be looked at, and the service that knows of
vulnerabilities could not be asked about everything.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.supply_chain.bill import write_bill
from tools.supply_chain.licences import check_licences, installed
from tools.supply_chain.locks import check_locks, read_lock
from tools.supply_chain.startup_files import unexpected_files
from tools.supply_chain.vulnerabilities import OUT_OF_REACH, Run, look_up, run

ROOT = Path(__file__).parents[2]
WRONG, UNASKED = 1, 3
SHIPPED = ("runtime", "gateway", "tracing", "model")
"""The locks of what runs at a desk; the others are for making, testing and trying."""
SHOWN = 20


class Report:
    """Prints what each check found."""

    def __init__(self) -> None:
        self.wrong = False
        self.unasked = False

    def say(self, what: str, problems: Iterable[str]) -> None:
        """One check and what is wrong by it."""
        found = list(problems)
        self.wrong = self.wrong or bool(found)
        print(f"{'WRONG' if found else 'ok   '}  {what}")
        for problem in found:
            print(f"         {problem}")

    def say_out_of_reach(self) -> None:
        """The service of vulnerabilities is not there for us, and no package is to blame."""
        self.unasked = True
        print(f"UNASKED  {OUT_OF_REACH}")

    def say_unasked(self, problems: Sequence[str]) -> None:
        """What the service of vulnerabilities could not be asked."""
        self.unasked = True
        print(f"UNASKED  vulnerabilities: the service could not be asked about {len(problems)} of what is pinned")
        for problem in problems[:SHOWN]:
            print(f"         {problem}")
        if len(problems) > SHOWN:
            print(f"         … and {len(problems) - SHOWN} more")

    @property
    def code(self) -> int:
        """The exit code of all of it."""
        return WRONG if self.wrong else UNASKED if self.unasked else 0


def audit(folder: Path, environment: Path, *, tools: Path, out: Path, run: Run = run) -> int:
    """Run every check: `tools` is the environment that holds pip-audit and cyclonedx-py."""
    report = Report()
    report.say("every lock pins with hashes and names no address", check_locks(folder))
    for each in (environment, tools):
        report.say(f"nothing unexpected runs at the start of {each.name}", unexpected_files(each))
    shipped = [path for name in SHIPPED if (path := folder / f"{name}.txt").exists()]
    pins = [pin for path in shipped for pin in read_lock(path)[0]]
    here = len({pin.key for pin in pins} & installed(environment).keys())
    looked_at = f"{here} of {len({pin.key for pin in pins})} packages are installed here to be looked at"
    report.say(f"no GPL and no AGPL among what is shipped ({looked_at})", check_licences(pins, environment))
    report.say(*_bill(folder / "runtime.txt", tools / "bin" / "cyclonedx-py", environment, out=out))
    asked, away = 0, True
    unasked: list[str] = []
    vulnerable: list[str] = []
    for path in sorted(folder.glob("*.txt")):
        found = look_up(path, tools / "bin" / "pip-audit", run)
        asked += found.asked
        away = away and found.away
        unasked += found.unasked
        vulnerable += found.vulnerable
    if asked:
        report.say(f"no known vulnerability in {asked} pins", sorted(set(vulnerable)))
    if unasked and away:
        report.say_out_of_reach()
    elif unasked:
        report.say_unasked(sorted(set(unasked)))
    return report.code


def _bill(lock: Path, cyclonedx: Path, environment: Path, *, out: Path) -> tuple[str, list[str]]:
    try:
        count = write_bill(lock, cyclonedx, environment=environment, out=out)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"bill of materials {out}", [f"{type(error).__name__}: {error}"]
    return f"bill of materials of {count} components: {out}", []


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.supply_chain", description=__doc__)
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements")
    parser.add_argument("--environment", type=Path, default=Path(sys.prefix))
    parser.add_argument("--tools", type=Path, default=ROOT / ".venv-audit", help="where pip-audit is installed")
    parser.add_argument("--out", type=Path, default=Path(".audit") / "sbom.json")
    given = parser.parse_args(arguments)
    return audit(given.requirements, given.environment, tools=given.tools, out=given.out)


if __name__ == "__main__":
    sys.exit(main())
