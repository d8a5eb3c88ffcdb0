"""Does promptfoo say the same of every answer as our evaluation, and what do both make of the same model?

A loopback model with 64 slots takes 100 ms an answer; 7 of 100 answers are invalid, each case always the same. 1,000
cases of the bundled bars are rendered by our registry once, and go through `run_eval.py` and through promptfoo, as
many at once as there are slots. Printed: how many answers each takes for valid and where they differ, and the
throughput of both as a share of what the model can give and as a ratio. Ends with 1 where validity differs for any
case, with 2 where something could not be measured.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.promptfoo import ours, peer
from bench.promptfoo.installing import ROOT, NotMeasured, installed
from bench.promptfoo.model import DELAY_S, INVALID_SHARE, SLOTS
from libs.evaluation.cases.dataset import write_cases
from libs.judgement.rules import RULES_FILE, Rules
from libs.llm.registry import Registry
from tools.llm_eval.bundled import bundled_cases

PROMPTS = ROOT / "configs" / "llm_prompts.yaml"
SHOWN = 5
END_S = 10


@dataclass(frozen=True, slots=True)
class Run:
    """One side: what it says of each case, seconds of the command, and what the model saw of it."""

    valid: Mapping[str, bool]
    seconds: float
    requests: int
    span_s: float
    used: float

    @property
    def rate(self) -> float:
        """Cases a second, from the first request to the last answer."""
        return len(self.valid) / self.span_s


def measured(ask: Callable[[str], float], judge: Callable[[], Mapping[str, bool]]) -> Run:
    """Start a model, let one side ask it, and end it."""
    command = [sys.executable, "-m", "bench.promptfoo.model"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as model:
        assert model.stdout is not None
        try:
            seconds = ask(model.stdout.readline().strip())
        finally:
            model.send_signal(signal.SIGTERM)
            said, _ = model.communicate(timeout=END_S)
    saw = json.loads(said)
    return Run(judge(), seconds, requests=saw["requests"], span_s=saw["span_s"], used=saw["used"])


def both(folder: Path, *, count: int, version: str) -> tuple[Run, Run]:
    """Our run and promptfoo's, one after the other."""
    home = installed()
    registry, rules = Registry.load_quietly(PROMPTS), Rules.load(RULES_FILE)
    cases = list(bundled_cases(n=count, seed=1, rules=rules))
    dataset = folder / "cases.jsonl"
    write_cases(dataset, cases)
    prompt = registry.version("policy", version)

    def ask_promptfoo(base_url: str) -> float:
        return peer.run(
            peer.write_tests(folder, cases, registry=registry, prompt=prompt, rules=rules, base_url=base_url), home=home
        )

    house = measured(lambda url: ours.run(dataset, version, base_url=url), lambda: ours.validity(dataset))
    return house, measured(ask_promptfoo, lambda: peer.validity(folder / peer.CONFIG))


def report(house: Run, other: Run) -> int:
    """Print what was seen; how many cases they judge differently, those that one of them lacks among these."""
    for name, run in (("run_eval.py", house), ("promptfoo", other)):
        print(
            f"  {name:<12} {sum(run.valid.values()):>5} of {len(run.valid)} first answers valid, "
            f"{run.requests} requests within {run.span_s:.2f} s: {run.rate:.0f} cases/s, "
            f"{run.used:.1%} of the slots' time; {run.seconds:.1f} s from start to end"
        )
    differ = sorted(
        name for name in house.valid.keys() | other.valid.keys() if house.valid.get(name) != other.valid.get(name)
    )
    for name in differ[:SHOWN]:
        print(f"  differs: {name}: ours {house.valid.get(name)}, promptfoo {other.valid.get(name)}")
    print(f"  validity differs for {len(differ)} of {len(house.valid)} cases")
    print(
        f"  ours / promptfoo: {house.rate / other.rate:.2f} x the cases a second while asking, "
        f"{other.seconds / house.seconds:.2f} x from start to end"
    )
    return len(differ)


def main() -> int:
    """0 where both say the same of every case, 1 where not, 2 where it could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.promptfoo", description="Our evaluation beside promptfoo.")
    parser.add_argument("--cases", type=int, default=1000, help="of the bundled bars (default: 1000)")
    parser.add_argument("--version", default="1.0.0", help="of the prompt policy (default: 1.0.0)")
    options = parser.parse_args()
    print(f"promptfoo: {SLOTS} slots, {DELAY_S * 1000:.0f} ms an answer, about {INVALID_SHARE:.0%} of them invalid")
    with tempfile.TemporaryDirectory(prefix="lexi-bench-") as folder:
        try:
            house, other = both(Path(folder), count=options.cases, version=options.version)
        except NotMeasured as error:
            print(f"not measured: {error}", file=sys.stderr)
            return 2
    return 1 if report(house, other) else 0


if __name__ == "__main__":
    sys.exit(main())
