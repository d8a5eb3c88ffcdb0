"""`python -m tests.oracle`: ask the oracles anew and compare; `--record` keeps their answers for the unit tests.

They are installed once into `.oracle/`, pinned with hashes, and see nothing of the project.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.oracle.cases import ASKED, mixtures, ours
from tests.oracle.comparison import compare

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".oracle"
REQUIREMENTS = HERE / "requirements.txt"
RECORDED = HERE / "recorded.json"


def oracle() -> Path:
    """The Python that has the oracles, installed where it is not there yet."""
    python, finished = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "finished"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if not finished.exists() or finished.read_text(encoding="utf-8") != wanted:
        print(f"installing gbstats and ville into {ENVIRONMENT.name}/ …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
        subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", str(REQUIREMENTS)], check=True)
        finished.write_text(wanted, encoding="utf-8")
    return python


def main() -> int:
    """Compare; 1 where a figure is off."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description="Compare with gbstats and ville.")
    parser.add_argument("--record", action="store_true", help="keep their answers for the unit tests")
    options = parser.parse_args()
    asked = json.dumps({**ASKED, "mixtures": mixtures()})
    done = subprocess.run(
        [str(oracle()), str(HERE / "answers.py")], input=asked, stdout=subprocess.PIPE, text=True, check=True
    )
    theirs = json.loads(done.stdout)
    found = compare(ours(), theirs)
    for each in found:
        print(f"{'ok ' if each.passed else 'OFF'} {each.name}: {each.cases} cases, at most {each.worst:.1e} off")
    if options.record:
        RECORDED.write_text(json.dumps(theirs) + "\n", encoding="utf-8")
        print(f"recorded in {RECORDED.relative_to(ROOT)}")
    return 0 if all(each.passed for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
