"""promptfoo's side: the rendered cases as its tests, one run of it, and what it says of each case."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.promptfoo.installing import PROGRAM, NotMeasured, environment, node
from bench.promptfoo.model import SLOTS
from libs.evaluation.cases.case import EvalCase
from libs.judgement.inputs import prompt_inputs
from libs.judgement.rules import Rules
from libs.llm.registry import Registry
from libs.llm.types import PromptVersion

CONFIG = "promptfooconfig.json"
MOST_RUN_S = 900
FAILED_TESTS = 100
"""The status promptfoo ends with where some of its tests failed, as the invalid answers do."""
ALONE = {
    "PROMPTFOO_DISABLE_TELEMETRY": "1",
    "PROMPTFOO_DISABLE_UPDATE": "1",
    "PROMPTFOO_DISABLE_REMOTE_GENERATION": "1",
    "PROMPTFOO_SELF_HOSTED": "1",
    "NO_PROXY": "127.0.0.1",
    "OPENAI_API_KEY": "none",
}
"""Nothing of it leaves the machine."""


def write_tests(
    folder: Path, cases: Sequence[EvalCase], *, registry: Registry, prompt: PromptVersion, rules: Rules, base_url: str
) -> Path:
    """promptfoo's configuration: each case as our client's messages, each answer held to the schema."""
    assert prompt.constraint is not None
    assert prompt.constraint.schema is not None
    sampling = prompt.sampling
    asks = {
        "apiBaseUrl": base_url,
        "apiKey": "none",
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "passthrough": {"structured_outputs": {"json": prompt.constraint.schema}},
    }
    tests: list[dict[str, Any]] = []
    for case in cases:
        messages = registry.render(prompt, prompt_inputs(case.inputs, rules, feed=case.feed)).messages
        said = [{"role": message.role, "content": message.content} for message in messages]
        tests.append({"description": case.id, "vars": {"messages": json.dumps(said)}})
    document = {
        "prompts": ["{{ messages | safe }}"],
        "providers": [{"id": "openai:chat:Lexi", "config": asks}],
        "defaultTest": {
            "assert": [{"type": "is-json", "value": prompt.constraint.schema}],
            "options": {"disableVarExpansion": True},
        },
        "tests": tests,
    }
    path = folder / CONFIG
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def run(config: Path, *, home: Path) -> float:
    """Let promptfoo ask everything, as many at once as there are slots; seconds of the whole command.

    Raises `NotMeasured` with the end of what it said.
    """
    program, _ = node()
    out = config.with_name("results.json")
    words = ["eval", "-c", str(config), "-o", str(out), "-j", str(SLOTS), "--no-cache", "--no-write", "--no-table"]
    known = environment(program) | ALONE | {"PROMPTFOO_CONFIG_DIR": str(config.parent / "home")}
    command = [str(program), "--no-warnings", str(home / PROGRAM), *words, "--no-progress-bar", "--no-share"]
    begun = time.monotonic()
    done = subprocess.run(
        command,
        cwd=config.parent,
        env={name: value for name, value in known.items() if name not in {"LLM_API_KEY", "DATABASE_URL"}},
        capture_output=True,
        text=True,
        timeout=MOST_RUN_S,
        check=False,
    )
    if done.returncode not in {0, FAILED_TESTS} or not out.exists():
        raise NotMeasured(f"promptfoo ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return time.monotonic() - begun


def validity(config: Path) -> dict[str, bool]:
    """Of each case whether promptfoo takes its answer for valid. Raises `NotMeasured` where one got no answer."""
    document: Mapping[str, Any] = json.loads(config.with_name("results.json").read_text(encoding="utf-8"))
    found: dict[str, bool] = {}
    for one in document["results"]["results"]:
        name = one["testCase"]["description"]
        if not one.get("response", {}).get("output"):
            raise NotMeasured(f"promptfoo got no answer for {name}: {one.get('error')}")
        found[name] = bool(one["success"])
    return found
