"""Does an evaluation keep the model busy, with every row on disk before its task asks the next? How large does it grow?

Both are measured on the whole command, `run_eval.py run`, as a user starts it: data set checked, cases asked, rows
kept, figures and report written, without a database. First on a fake engine of 64 slots and 100 ms per call, all of
them the share of the role eval: printed is the time the calls would take if every slot were busy all the time, as a
share of the time from the first question to the last row. Then with 100,000 cases, on an engine that answers at once:
printed is the largest resident size of the process.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from libs.evaluation.cases.dataset import write_cases
from libs.evaluation.running.folder import Folder
from libs.evaluation.running.journal import latest_rows
from tests.unit.evaluation_running_cases import case_number

SLOTS = 64
DELAY_S = 0.1
CALLS = 19_200
TARGET = 0.95
MANY = 100_000
MOST_MB = 1_000
ROOT = Path(__file__).parents[1]
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
"""What the command sees of the environment: no settings, so no database."""
UPSTREAMS = f"""
upstreams:
  - name: lexi
    dialect: vllm
    slots: {SLOTS}
    shares: {{eval: {SLOTS}}}
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: rows kept with an answer, seconds from the first question to the last row, the process's cost."""

    rows: int
    seconds: float
    cpu_s: float
    peak_mb: float


@contextmanager
def fake_engine(delay_s: float) -> Generator[str, None, None]:
    """The engine as a process; its address."""
    command = [sys.executable, "-m", "tests.fakes.engine", "--slots", str(SLOTS), "--delay-ms", str(delay_s * 1000)]
    command += ["--chunks", "4", "--reply-by-constraint"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def evaluated(home: Path, name: str, *, cases: int, delay_s: float) -> Run:
    """Run the command over so many cases, one version of the policy."""
    data, upstreams = home / f"{name}.jsonl", home / "upstreams.yaml"
    write_cases(data, (case_number(number) for number in range(cases)))
    upstreams.write_text(UPSTREAMS, encoding="utf-8")
    command = [sys.executable, "-m", "tools.llm_eval.run_eval", "run", "--dataset", str(data), "--prompt", "policy"]
    command += ["--version", "1.0.0", "--no-masked", "--injection", "off", "--name", name, "--results", str(home)]
    seen = {name: os.environ[name] for name in KEPT if name in os.environ}
    with fake_engine(delay_s) as base_url, (home / f"{name}.out").open("w+", encoding="utf-8") as out:
        environment = seen | {"LLM_BASE_URL": base_url, "UPSTREAMS_FILE": str(upstreams)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        assert process.returncode == 0, out.read()
    rows, seconds = answered(next(home.glob(f"*Z-{name}")))
    return Run(rows, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)


def answered(path: Path) -> tuple[int, float]:
    """How many items were answered, and the seconds from the first question to the last row."""
    count, first_s, last_s = 0, float("inf"), 0.0
    for row in latest_rows(Folder.open(path).rows):
        at_s = datetime.fromisoformat(row.at).timestamp()
        count += row.status == "ok"
        first_s, last_s = min(first_s, at_s - row.total_ms / 1000), max(last_s, at_s)
    return count, last_s - first_s


def main() -> int:
    """1 where a target is missed."""
    with tempfile.TemporaryDirectory(prefix="lexi-bench-") as folder:
        home = Path(folder)
        busy = evaluated(home, "busy", cases=CALLS, delay_s=DELAY_S)
        share = busy.rows * DELAY_S / SLOTS / busy.seconds
        print(
            f"evaluation  {busy.rows:,} calls of {DELAY_S * 1000:.0f} ms in {busy.seconds:.1f} s: "
            f"{share:.1%} of {SLOTS} slots, {busy.cpu_s / busy.rows * 1000:.2f} ms CPU per case in all"
        )
        many = evaluated(home, "many", cases=MANY, delay_s=0.0)
        print(
            f"evaluation  {many.rows:,} cases, report included: at most {many.peak_mb:.0f} MB, "
            f"{many.rows / many.seconds:,.0f} calls a second on an engine that answers at once"
        )
    enough = share >= TARGET and busy.rows == CALLS
    return 0 if enough and many.rows == MANY and many.peak_mb <= MOST_MB else 1


if __name__ == "__main__":
    sys.exit(main())
