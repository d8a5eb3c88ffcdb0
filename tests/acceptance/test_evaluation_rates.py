"""A model on loopback that errs at known rates: each true rate lies in the interval that the evaluation reports."""

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.acceptance.judge import reasons_of
from tests.acceptance.stack import FOREIGN, ROOT
from tests.fakes.engine import FakeEngine

CASES = 800
INVALID, MENDED = 0.15, 0.6
"""The share of first replies that are no JSON, and of these the share that the repair turn mends."""
LETS_THROUGH, HOLDS_BACK = 0.12, 0.2
"""The share of decisions that are turned: of those to be denied, and of those to be allowed."""

VALIDITY = 1 - INVALID * (1 - MENDED)
TRUE = {
    "answered": 1.0,
    "first_validity": 1 - INVALID,
    "validity": VALIDITY,
    "wrongly_allowed": VALIDITY * LETS_THROUGH,
    "wrongly_blocked": 1 - VALIDITY * (1 - HOLDS_BACK),
}


def drawn(what: str, said: str) -> float:
    """A number from 0 to 1 that is the same for the same question."""
    return int.from_bytes(hashlib.sha256(f"{what} {said}".encode()).digest()[:8]) / 2**64


def erring(body: dict[str, Any]) -> str:
    """The judge's answer, spoilt at the known rates."""
    system, *rest = (str(message["content"]) for message in body["messages"])
    repairing = body["messages"][-2]["role"] == "assistant"
    user = rest[-3] if repairing else rest[-1]
    asked = "".join(rest[:-2] if repairing else rest)
    if drawn("invalid", asked) < INVALID and not (repairing and drawn("mended", asked) < MENDED):
        return "I would rather not say."
    reasons = reasons_of(system, user)
    turned = drawn("turned", asked) < (LETS_THROUGH if reasons else HOLDS_BACK)
    reasons = reasons if not turned else ([] if reasons else ["DISPERSION"])
    return json.dumps({"allow": not reasons, "reasons": reasons, "flags": []})


def figures_in(results: Path) -> dict[str, Any]:
    """The figures of the one version that was judged."""
    (folder,) = results.iterdir()
    return json.loads((folder / "summary.json").read_text())["versions"][0]["figures"]


async def test_true_rates_lie_in_the_reported_intervals(tmp_path: Path) -> None:
    known = {name: value for name, value in os.environ.items() if not name.startswith((*FOREIGN, "LOCAL_STATE"))}
    alone = {"DATABASE_URL": "", "LOCAL_STATE": "/nonexistent"}
    words = ["--prompt", "policy", "--limit", str(CASES), "--injection", "off", "--results", str(tmp_path)]
    async with FakeEngine(dialect="vllm", slots=32, reply=erring) as model:
        run = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tools.llm_eval.run_eval", "run", *words,
            cwd=ROOT, env=known | alone | {"LLM_BASE_URL": model.base_url},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await run.communicate()
    assert run.returncode == 0, said.decode()
    figures = figures_in(tmp_path)
    assert figures["answered"]["n"] == CASES
    for name, true in TRUE.items():
        assert figures[name]["low"] <= true <= figures[name]["high"], (name, true, figures[name])
        assert figures[name]["high"] - figures[name]["low"] < 0.1, "an interval this wide proves nothing"
