"""The tools service: what a person runs beside the stack, in a container with its settings."""

import re

import pytest

from tests.compose.stack import ComposeStack

pytestmark = pytest.mark.timeout(2400)

MAKE = ("docker", "compose", "run", "--rm", "-T", "tools", "make")


def test_eval_llm_judges_on_the_model_and_in_the_database_of_the_stack(stack: ComposeStack) -> None:
    before = len(stack.model.engine.requests)
    done = stack.run(*MAKE, "eval-llm", "PROMPT=policy", "VERSION=1.0.0", "LIMIT=6", "OPERATOR=ann", timeout_s=600)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert len(stack.model.engine.requests) > before
    assert re.search(r"policy 1\.0\.0|policy.*1\.0\.0", done.stdout + done.stderr)
    assert stack.sql("select count(*) from evaluations") == ["1"]


def test_eval_llm_fails_where_a_threshold_is_missed(stack: ComposeStack) -> None:
    stack.model.engine.reply = "I would rather not say."
    words = ("eval-llm", "PROMPT=policy", "VERSION=1.0.0", "LIMIT=6", "FAIL_UNDER=validity=0.9", "OPERATOR=ann")
    done = stack.run(*MAKE, *words, timeout_s=600)
    assert done.returncode != 0
    assert "validity" in done.stdout + done.stderr


def test_switches_prompts_and_the_chain_are_at_hand(stack: ComposeStack) -> None:
    for target, word in (("switches", "LLM_SHADOW_MODE"), ("prompts", "policy"), ("chain", "rows hold")):
        done = stack.run(*MAKE, target, check=True)
        assert word in done.stdout + done.stderr
