"""Our side: `run_eval.py` as it is called, on the same cases, and what it says of each case's first answer."""

import os
import subprocess
import sys
import time
from pathlib import Path

import orjson

from bench.promptfoo.installing import ROOT, NotMeasured
from bench.promptfoo.model import SLOTS

MOST_RUN_S = 900
UPSTREAMS = f"""
upstreams:
  - name: lexi
    dialect: vllm
    slots: {SLOTS}
    shares: {{eval: {SLOTS}}}
"""
OF_THE_HOUSE = ("LLM_", "DATABASE_URL", "PROMPTS_", "UPSTREAMS_")


def run(dataset: Path, version: str, *, base_url: str) -> float:
    """Let `run_eval.py` ask everything with all slots; seconds of the whole command.

    Raises `NotMeasured` with the end of what it said.
    """
    folder = dataset.parent
    (folder / "upstreams.yaml").write_text(UPSTREAMS, encoding="utf-8")
    known = {name: value for name, value in os.environ.items() if not name.startswith(OF_THE_HOUSE)}
    known |= {"LLM_BASE_URL": base_url, "UPSTREAMS_FILE": str(folder / "upstreams.yaml")}
    words = ["run", "--dataset", str(dataset), "--prompt", "policy", "--version", version, "--no-masked"]
    words += ["--injection", "off", "--results", str(folder / "results"), "--name", "bench"]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tools.llm_eval.run_eval", *words],
        cwd=ROOT,
        env=known,
        capture_output=True,
        text=True,
        timeout=MOST_RUN_S,
        check=False,
    )
    if done.returncode != 0:
        raise NotMeasured(f"run_eval.py ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return time.monotonic() - begun


def validity(dataset: Path) -> dict[str, bool]:
    """Of each case whether its first answer was valid, before any repair. Raises `NotMeasured` without an answer."""
    [rows] = (dataset.parent / "results").glob("*/rows.jsonl")
    found: dict[str, bool] = {}
    with rows.open("rb") as lines:
        for line in lines:
            row = orjson.loads(line)
            if row["status"] not in {"ok", "invalid"}:
                raise NotMeasured(f"our run got no answer for {row['case']}: {row['error']}")
            found[row["case"]] = row["status"] == "ok" and row["first_error"] is None
    return found
