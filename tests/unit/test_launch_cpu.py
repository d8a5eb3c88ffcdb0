"""Real vLLM without a GPU: the model's file becomes a folder, the environment that of a small server; and the unit."""

import configparser
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.launch_cases import LATER, ROOT, SCRIPTS
from tools.lexi_vllm import convert, serve
from tools.local_stack.lexi import CannotServe

FIELDS: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.rope.freq_base": 100000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 49152,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 2,
}


def permuted(weight: Any, heads: int) -> Any:
    """What llama.cpp's own converter does to query and key matrices."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.mark.parametrize("heads", [1, 3, 9])
def test_query_and_key_come_back_in_their_own_order(heads: int) -> None:
    weight = np.arange(heads * 8 * 5).reshape(heads * 8, 5)
    assert not np.array_equal(permuted(weight, heads), weight)
    assert np.array_equal(convert.unpermute(permuted(weight, heads), heads), weight)


def test_tensors_get_the_names_that_vllm_reads() -> None:
    assert convert.hf_name("token_embd.weight") == "model.embed_tokens.weight"
    assert convert.hf_name("blk.29.attn_q.weight") == "model.layers.29.self_attn.q_proj.weight"
    assert convert.hf_name("blk.0.ffn_norm.weight") == "model.layers.0.post_attention_layernorm.weight"
    for unknown in ("blk.0.attn_q.bias", "blk.0.ssm_a.weight", "other"):
        with pytest.raises(convert.CannotConvert, match=unknown):
            convert.hf_name(unknown)


def test_the_configuration_is_the_files_own() -> None:
    config = convert.config_of(FIELDS, tied=True)
    assert (config["head_dim"], config["num_key_value_heads"], config["rope_theta"]) == (64, 3, 100000.0)
    assert config["tie_word_embeddings"] is True
    with pytest.raises(convert.CannotConvert, match="mamba"):
        convert.config_of({**FIELDS, "general.architecture": "mamba"}, tied=True)


def test_a_folder_that_is_whole_is_not_made_again(tmp_path: Path) -> None:
    whole = tmp_path / "lexi-vllm/small"
    whole.mkdir(parents=True)
    (whole / "config.json").write_text("{}", encoding="utf-8")
    assert serve.converted(Path("small.gguf"), tmp_path) == whole


def test_a_conversion_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "PYTHON", "/bin/false")
    with pytest.raises(CannotServe, match=r"small\.gguf could not be unpacked"):
        serve.converted(Path("small.gguf"), tmp_path)


def test_it_is_small_and_on_loopback_unless_told() -> None:
    env = serve.environment(Path("/models/small"), {"PATH": "/bin"})
    assert (env["LEXI_DEVICE"], env["LEXI_TENSOR_PARALLEL"], env["LEXI_HOST"]) == ("cpu", "1", "127.0.0.1")
    assert env["LEXI_MODEL_PATH"] == "/models/small"
    assert len(env["VLLM_CPU_OMP_THREADS_BIND"].split(",")) == int(env["OMP_NUM_THREADS"])
    given = {"LLM_API_KEY": "k", "LEXI_MAX_NUM_SEQS": "4", "LLM_DTYPE": ""}
    told = serve.environment(Path("/models/small"), given)
    assert (told["LEXI_HOST"], told["LEXI_MAX_NUM_SEQS"], told["LLM_DTYPE"]) == ("0.0.0.0", "4", "bfloat16")


def test_further_flags_stand_where_the_script_passes_them_on() -> None:
    assert serve.command(["--dry-run"])[1:] == ["--dry-run", "--", "--enforce-eager"]
    assert serve.command(["--", "--seed", "1"])[1:] == ["--", "--seed", "1", "--enforce-eager"]


@pytest.fixture
def unit() -> configparser.ConfigParser:
    """The systemd unit."""
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # systemd's names have capitals
    unit.read(SCRIPTS / "lexi.service", encoding="utf-8")
    return unit


def test_the_unit_starts_the_script_and_waits_for_a_completion(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    script = ROOT / Path(service["ExecStart"]).relative_to("/opt/lexi-gateway")
    assert os.access(script, os.X_OK)
    assert (service["Type"], service["Restart"], service["RestartPreventExitStatus"]) == ("notify", "always", "2")
    waits = int(dict(pair.split("=") for pair in service["Environment"].split())["LEXI_WAIT_S"])
    assert int(service["TimeoutStartSec"]) > waits + 1800
    # The answers under way have 20 s, the engine a while after them.
    assert int(service["TimeoutStopSec"]) >= 40


def test_the_unit_never_gives_up_on_what_time_can_mend(unit: configparser.ConfigParser) -> None:
    """Starts that wait and then end with 75 must not use up those that an hour allows."""
    service, limits = unit["Service"], unit["Unit"]
    waits = int(dict(pair.split("=") for pair in service["Environment"].split())["LEXI_WAIT_S"])
    each = waits + int(service["RestartSec"])
    assert each * int(limits["StartLimitBurst"]) > int(limits["StartLimitIntervalSec"])
    assert str(LATER) not in service["RestartPreventExitStatus"].split()


def test_the_unit_has_a_place_to_write_to(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    written = dict(pair.split("=") for pair in service["Environment"].split())
    assert {written["HOME"], written["XDG_CACHE_HOME"]} == {f"/var/cache/{service['CacheDirectory']}"}
