"""Hermes and Phi-3: a share of one card that steady use keeps below the watchdog's limit."""

from pathlib import Path

import pytest

from tests.unit.launch_cases import Machine
from tests.unit.test_launch_command import value

LIMIT = 10752


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def card(machine: Machine, *, total: int, free: int) -> None:
    machine.gpus = "".join(f"{number}, GPU-aaaa{number}, {total}, {free}\n" for number in range(2))
    machine.lay()


@pytest.mark.parametrize("model", ["hermes", "phi3"])
@pytest.mark.parametrize("total", [11264, 12288, 16376, 24576, 81920])
def test_the_share_stays_below_the_limit_on_every_card(machine: Machine, model: str, total: int) -> None:
    card(machine, total=total, free=total - 100)
    line, _ = machine.dry_run(model)
    share = float(value(line, "--gpu-memory-utilization"))
    # What vLLM does not count (CUDA's context, graphs) has room between its share and the limit, and little is wasted.
    assert LIMIT - 1024 - total / 1000 <= share * total <= LIMIT - 1024


def test_the_limit_of_the_watchdog_moves_it(machine: Machine) -> None:
    card(machine, total=24576, free=24500)
    line, _ = machine.dry_run("hermes", WATCHDOG_LIMIT_MIB="20480")
    assert value(line, "--gpu-memory-utilization") == "0.791"


def test_a_card_that_others_use_too(machine: Machine) -> None:
    """The watchdog reads the whole card, so what others hold counts."""
    card(machine, total=24576, free=22576)
    said = machine.refusal("hermes")
    assert "GPU 0 has 2000 MiB in use; with 9728 more it would stay above the watchdog's limit of 10752" in said
    line, _ = machine.dry_run("hermes", HERMES_MEMORY_MIB="8000")
    assert value(line, "--gpu-memory-utilization") == "0.325"


def test_a_card_too_small(machine: Machine) -> None:
    card(machine, total=8192, free=8000)
    assert "GPU 0 has 8192 MiB, HERMES_MEMORY_MIB=9728 asks for more" in machine.refusal("hermes")


@pytest.mark.parametrize(
    ("model", "name", "port", "context"), [("hermes", "Hermes", "8018", "6144"), ("phi3", "Phi-3", "8019", "4096")]
)
def test_they_serve_what_the_sidecar_asks_for(machine: Machine, model: str, name: str, port: str, context: str) -> None:
    line, _ = machine.dry_run(model)
    flags = ("--served-model-name", "--port", "--max-model-len", "--tensor-parallel-size")
    assert [value(line, flag) for flag in flags] == [name, port, context, "1"]
    assert "--disable-custom-all-reduce" not in line


def test_each_has_a_key_of_its_own(machine: Machine) -> None:
    assert "HERMES_API_KEY" in machine.refusal("hermes", LLM_API_KEY="")
    line, _ = machine.dry_run("hermes", LLM_API_KEY="", HERMES_API_KEY="secret")
    assert "--middleware" in line
    assert "secret" not in line


def test_a_bad_value_is_named(machine: Machine) -> None:
    assert "HERMES_CTX" in machine.refusal("hermes", HERMES_CTX="long")
    assert "WATCHDOG_LIMIT_MIB" in machine.refusal("phi3", WATCHDOG_LIMIT_MIB="10 GB")
