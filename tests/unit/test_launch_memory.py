"""Hermes and Phi-3: a share of one card that steady use keeps below the watchdog's limit."""

from pathlib import Path

import pytest

from tests.unit.launch_cases import LATER, Machine
from tests.unit.test_launch_command import value

LIMIT = 10752


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def card(machine: Machine, *, total: int, free: int, used: int = 0) -> None:
    machine.gpus = "".join(f"{number}, GPU-aaaa{number}, {total}, {free}, {used}\n" for number in range(2))
    machine.lay()


@pytest.mark.parametrize(
    ("model", "total"), [("hermes", 11264), ("hermes", 12288), ("hermes", 16376), ("phi3", 24576), ("phi3", 81920)]
)
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
    card(machine, total=24576, free=22000, used=2000)
    line, said = machine.dry_run("hermes")
    assert value(line, "--gpu-memory-utilization") == "0.314"
    assert "GPU 0 has 2000 MiB in use: vLLM gets 7728 MiB in place of 9728" in said
    line, _ = machine.dry_run("hermes", HERMES_MEMORY_MIB="7728")
    assert value(line, "--gpu-memory-utilization") == "0.314"
    said = machine.refusal(model="hermes", code=LATER, HERMES_MEMORY_MIB="7729")
    assert "GPU 0 has 2000 MiB in use; with 7729 more and 1024 around them it would stay above the" in said
    card(machine, total=24576, free=18000, used=6000)
    assert "GPU 0 has 6000 MiB in use; with 9728 more" in machine.refusal(model="hermes", code=LATER)


def test_what_the_driver_keeps_is_not_in_use(machine: Machine) -> None:
    """The watchdog reads memory.used, in which it is not."""
    card(machine, total=24576, free=24000, used=0)
    line, said = machine.dry_run("hermes")
    assert value(line, "--gpu-memory-utilization") == "0.395"
    assert "in use" not in said


def test_a_limit_with_a_fraction_and_numbers_with_zeros_before(machine: Machine) -> None:
    line, _ = machine.dry_run("hermes", WATCHDOG_LIMIT_MIB="10752.5")
    assert value(line, "--gpu-memory-utilization") == "0.395"
    line, _ = machine.dry_run("hermes", WATCHDOG_LIMIT_MIB="010752", HERMES_MEMORY_MIB="09728")
    assert value(line, "--gpu-memory-utilization") == "0.395"


def test_more_than_the_watchdog_ever_allows(machine: Machine) -> None:
    said = machine.refusal(model="hermes", HERMES_MEMORY_MIB="10000")
    assert "HERMES_MEMORY_MIB=10000 and 1024 MiB around it are above the watchdog's limit of 10752" in said


def test_phi3_keeps_to_its_own_card(machine: Machine) -> None:
    """Lexi's list of cards may stand in the same environment."""
    machine.gpus = "0, GPU-aaaa0, 24576, 100, 23900\n1, GPU-aaaa1, 24576, 24000, 0\n"
    machine.lay()
    _, said = machine.dry_run("phi3", CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3 is not read here: GPU 1, unless PHI3_GPU names another" in said
    assert "GPU 0 has" in machine.refusal(model="phi3", code=LATER, PHI3_GPU="0")


def test_a_card_too_small(machine: Machine) -> None:
    card(machine, total=8192, free=8000)
    said = machine.refusal(model="hermes")
    assert "GPU 0 has 8192 MiB, 8000 of them for programs; this start asks for more, 9728" in said


@pytest.mark.parametrize(
    ("model", "name", "port", "context"), [("hermes", "Hermes", "8018", "6144"), ("phi3", "Phi-3", "8019", "4096")]
)
def test_they_serve_what_the_sidecar_asks_for(machine: Machine, model: str, name: str, port: str, context: str) -> None:
    line, _ = machine.dry_run(model, **{f"{model.upper()}_PORT": ""})
    flags = ("--served-model-name", "--port", "--max-model-len", "--tensor-parallel-size")
    assert [value(line, flag) for flag in flags] == [name, port, context, "1"]
    assert "--disable-custom-all-reduce" not in line


def test_each_has_a_key_of_its_own(machine: Machine) -> None:
    assert "HERMES_API_KEY" in machine.refusal(model="hermes", LLM_API_KEY="")
    line, _ = machine.dry_run("hermes", LLM_API_KEY="", HERMES_API_KEY="secret")
    assert "--middleware" in line
    assert "secret" not in line


def test_a_bad_value_is_named(machine: Machine) -> None:
    assert "HERMES_CTX" in machine.refusal(model="hermes", HERMES_CTX="long")
    assert "WATCHDOG_LIMIT_MIB" in machine.refusal(model="phi3", WATCHDOG_LIMIT_MIB="10 GB")
