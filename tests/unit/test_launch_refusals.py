"""What a launch script will not start, and what it says: the variable, the card or the file, and what to do."""

import json
import socket
from pathlib import Path

import pytest

from tests.unit.launch_cases import LATER, REFUSED, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEXI_PORT", "0"),
        ("LEXI_PORT", "65536"),
        ("LEXI_PORT", "80; reboot"),
        ("LEXI_TENSOR_PARALLEL", "four"),
        ("LEXI_MAX_NUM_SEQS", "-1"),
        ("LEXI_SWAP_SPACE_GB", "1.5"),
        ("LEXI_TRUST_REMOTE_CODE", "2"),
        ("LEXI_CUSTOM_ALL_REDUCE", "maybe"),
        ("LEXI_EXECUTOR", "magic"),
        ("LEXI_DEVICE", "tpu"),
        ("LEXI_HOST", "example.org"),
        ("LEXI_PYTHON", "/no/such/python"),
        ("LLM_MAX_TOKENS", "0"),
        ("LLM_GPU_UTILIZATION", "0"),
        ("LLM_GPU_UTILIZATION", "88"),
        ("LLM_GPU_UTILIZATION", "1"),
        ("LLM_GPU_UTILIZATION", "1.0"),
        ("LEXI_MAX_NUM_SEQS", "00"),
        ("LEXI_WAIT_S", "soon"),
        ("LEXI_STOP_TIMEOUT_S", "3601"),
        ("LLM_DTYPE", "int3"),
    ],
)
def test_a_bad_value_is_named(machine: Machine, name: str, value: str) -> None:
    said = machine.refusal(model="lexi", code=REFUSED, **{name: value})
    assert name in said or value in said
    assert len(said.splitlines()) == 1


def test_a_model_must_be_named(machine: Machine) -> None:
    assert "LEXI_MODEL_PATH is not set" in machine.refusal(LEXI_MODEL_PATH="")


def test_a_folder_that_is_not_there(machine: Machine) -> None:
    """A disk may still be mounted, a model still be copied."""
    said = machine.refusal(code=LATER, LEXI_MODEL_PATH="/no/such/folder")
    assert said == "launch_lexi: LEXI_MODEL_PATH: /no/such/folder is not a folder"


def test_a_folder_without_a_model(machine: Machine) -> None:
    (machine.model / "config.json").unlink()
    assert "holds no config.json" in machine.refusal(code=LATER)


def test_a_folder_without_weights(machine: Machine) -> None:
    (machine.model / "model.safetensors").unlink()
    assert "holds no weights" in machine.refusal(code=LATER)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_an_index_that_is_none(machine: Machine, index: str) -> None:
    (machine.model / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    said = machine.refusal(code=LATER)
    assert "model.safetensors.index.json cannot be read" in said
    assert len(said.splitlines()) == 1


def test_a_model_that_was_fetched_in_part(machine: Machine) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}}
    (machine.model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "2 of 3 files are missing, model-2.safetensors first" in machine.refusal(code=LATER)


def test_a_hubs_name_needs_a_folder_to_fetch_into(machine: Machine) -> None:
    assert "is not a folder" in machine.refusal(code=LATER, LEXI_MODEL_PATH="desk/lexi-70b")
    said = machine.refusal(code=LATER, LEXI_MODEL_PATH="desk/lexi-70b", LEXI_DOWNLOAD_DIR="/no/such")
    assert "LEXI_DOWNLOAD_DIR" in said
    line, said = machine.dry_run(LEXI_MODEL_PATH="desk/lexi-70b", LEXI_DOWNLOAD_DIR=str(machine.folder))
    assert f"--download-dir {machine.folder}" in line
    assert "fetches it into" in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_open_address_without_a_key(machine: Machine, host: str) -> None:
    said = machine.refusal(LEXI_HOST=host, LLM_API_KEY="")
    assert "set LLM_API_KEY" in said
    assert "open to the network" in said


def test_loopback_needs_no_key(machine: Machine) -> None:
    line, _ = machine.dry_run(LEXI_HOST="127.0.0.1", LLM_API_KEY="")
    assert "--middleware" not in line


def test_the_key_may_come_from_a_file(machine: Machine) -> None:
    key = machine.folder / "key"
    key.write_text("  from-a-file\n", encoding="utf-8")
    line, _ = machine.dry_run(LLM_API_KEY="", LLM_API_KEY_FILE=str(key))
    assert "from-a-file" not in line
    key.write_text(" \n", encoding="utf-8")
    assert "set LLM_API_KEY" in machine.refusal(LLM_API_KEY="", LLM_API_KEY_FILE=str(key))
    assert "LLM_API_KEY_FILE: cannot read" in machine.refusal(LLM_API_KEY="", LLM_API_KEY_FILE="/no/such/key")


@pytest.mark.parametrize(
    "key", ["SECRET-one\nSECRET-two\n", "SECRET one", "SECRET\tone", "SECRET\x01one", "SECR\u00c9T"]
)
def test_a_key_that_is_no_single_word(machine: Machine, key: str) -> None:
    """Sent as a header it would come back in an error's words, and so in the log."""
    file = machine.folder / "key"
    file.write_text(key, encoding="utf-8")
    said = machine.refusal(LLM_API_KEY="", LLM_API_KEY_FILE=str(file)) + machine.refusal(LLM_API_KEY=key)
    assert "LLM_API_KEY_FILE: a key is one word" in said
    assert "LLM_API_KEY: a key is one word" in said
    assert "SECR" not in said


def test_a_taken_port(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        said = machine.refusal(code=LATER, LEXI_HOST="127.0.0.1", LEXI_PORT=port)
        # A dry run starts nothing: beside a Lexi that runs it still says what would be started.
        line, dry = machine.dry_run(LEXI_HOST="127.0.0.1", LEXI_PORT=port)
    assert f"port {port}: Address already in use. Another program listens there. Set LEXI_HOST or LEXI_PORT" in said
    assert dry.startswith(said)
    assert f"--port {port}" in line


def test_an_address_that_is_not_there_yet(machine: Machine) -> None:
    said = machine.refusal(code=LATER, LEXI_HOST="192.0.2.1")
    assert "This machine has no such address" in said
    assert "open to the network" in machine.refusal("--dry-run", LEXI_HOST="192.0.2.1", LLM_API_KEY="")


def test_too_few_gpus_named(machine: Machine) -> None:
    said = machine.refusal(CUDA_VISIBLE_DEVICES="0,1")
    assert "CUDA_VISIBLE_DEVICES=0,1 names 2 GPUs, LEXI_TENSOR_PARALLEL=4 needs 4" in said


def test_a_gpu_that_is_not_there(machine: Machine) -> None:
    assert "there is no GPU 7 here; there are: 0 1 2 3" in machine.refusal(CUDA_VISIBLE_DEVICES="0,1,2,7")


def test_a_gpu_named_twice(machine: Machine) -> None:
    assert "names GPU 0 twice" in machine.refusal(CUDA_VISIBLE_DEVICES="0,1,GPU-aaaa0,2")


def test_a_part_of_a_gpu(machine: Machine) -> None:
    assert "MIG-1 is a part of a card" in machine.refusal(CUDA_VISIBLE_DEVICES="0,1,2,MIG-1")


def test_a_gpu_by_its_identity(machine: Machine) -> None:
    line, _ = machine.dry_run(LEXI_TENSOR_PARALLEL="1", CUDA_VISIBLE_DEVICES="GPU-aaaa2")
    assert "--tensor-parallel-size 1" in line


def test_a_gpu_in_use(machine: Machine) -> None:
    machine.gpus = machine.gpus.replace("2, GPU-aaaa2, 24576, 24000, 0", "2, GPU-aaaa2, 24576, 9000, 15000")
    machine.lay()
    words = "GPU 2 has 9000 of 24576 MiB free, this start needs 21626"
    assert words in machine.refusal(code=LATER)
    line, said = machine.dry_run()
    assert words in said
    assert "--tensor-parallel-size 4" in line


def test_more_than_a_gpu_has(machine: Machine) -> None:
    said = machine.refusal(LLM_GPU_UTILIZATION="0.99")
    assert "GPU 0 has 24576 MiB, 24000 of them for programs; this start asks for more, 24330" in said


def test_no_driver(machine: Machine) -> None:
    machine.program("nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert "nvidia-smi does not answer" in machine.refusal(code=LATER)


def test_a_dry_run_without_a_driver(machine: Machine) -> None:
    (machine.folder / "nvidia-smi").unlink()
    assert "no nvidia-smi on the path" in machine.refusal()
    line, said = machine.dry_run()
    assert "no nvidia-smi on the path" in said
    assert "--gpu-memory-utilization 0.88" in line
    line, said = machine.dry_run("hermes")
    assert "SHARE stands for 9728 MiB" in said
    assert "--gpu-memory-utilization SHARE" in line


@pytest.mark.parametrize(
    ("more", "instead"),
    [
        (("--host", "0.0.0.0"), "set LEXI_HOST instead"),
        (("--port=1",), "set LEXI_PORT instead"),
        (("--served_model_name=x",), "set LLM_MODEL instead"),
        (("--seed", "1", "--served-mod", "x"), "set LLM_MODEL instead"),
        (("--api-key", "SECRET"), "set LLM_API_KEY instead"),
        (("-tp", "2"), "set LEXI_TENSOR_PARALLEL instead"),
        (("--gpu-memory-utilization", "0.95"), "set LLM_GPU_UTILIZATION instead"),
        (("--uds", "/run/x"), "leave it out"),
        (("--ssl-keyfile", "/x"), "leave it out"),
        (("--root-path", "/x"), "leave it out"),
        (("--config", "/x"), "leave it out"),
    ],
)
def test_flags_past_the_checks(machine: Machine, more: tuple[str, ...], instead: str) -> None:
    said = machine.refusal("--", *more, LEXI_HOST="127.0.0.1", LLM_API_KEY="")
    assert instead in said
    assert "SECRET" not in said


def test_a_word_before_the_further_flags(machine: Machine) -> None:
    """What was meant as a dry run starts nothing, wherever the word stands."""
    assert "--enforce-eager: before -- only --dry-run and --help" in machine.refusal("--enforce-eager", "--dry-run")
    assert machine.run("--dry-run", "--help").stdout.startswith("Starts Lexi")
    assert not (machine.folder / "started").exists()


def test_no_vllm(machine: Machine) -> None:
    machine.program("serve", "#!/bin/sh\necho 'No module named vllm' >&2\nexit 1\n")
    assert "has no vLLM that starts: No module named vllm" in machine.refusal()
