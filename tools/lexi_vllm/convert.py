"""Turn a GGUF file of a small Llama into the folder vLLM reads: weights, config and tokenizer.

`python convert.py MODEL.gguf FOLDER`, run by the Python that has vLLM (`gguf`, `numpy`, `safetensors`, `tokenizers`
and `torch` come with it); nothing of ours is imported. The file's quantised weights are unpacked to bfloat16: the
same model to the last bit of what the file says, not the one it was quantised from.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

CONTROL = 3  # gguf's token type of marks such as <|im_end|>
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class CannotConvert(Exception):
    """The file is not a model this knows; the message says why."""


def foreign(name: str) -> Any:
    """A package of vLLM's environment, which ours has not. `Any`: it is not there to be typed."""
    return import_module(name)


def hf_name(name: str) -> str:
    """Transformers' name of a tensor: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER_NAMES and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
    raise CannotConvert(f"unknown tensor {name}")


def unpermute(weight: Any, heads: int) -> Any:
    """Rows of a query or key matrix in transformers' order: llama.cpp keeps each head's rotary pairs side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def config_of(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """`config.json` out of the file's own description."""
    if fields.get("general.architecture") != "llama":
        raise CannotConvert(f"architecture {fields.get('general.architecture')!r} is not llama")
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "max_position_embeddings": fields["llama.context_length"],
        "rope_theta": fields["llama.rope.freq_base"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "vocab_size": fields["llama.vocab_size"],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


def write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """`tokenizer.json` and `tokenizer_config.json`: byte-level BPE that splits digits, as this family has it."""
    if (fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")) != ("gpt2", "smollm"):
        raise CannotConvert(f"tokenizer {fields.get('tokenizer.ggml.pre')!r} is not smollm")
    library = foreign("tokenizers")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    bpe = library.models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)
    tokenizer = library.Tokenizer(bpe)
    splits = library.pre_tokenizers
    digits, pieces = splits.Digits(individual_digits=True), splits.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = splits.Sequence([digits, pieces])
    tokenizer.decoder = library.decoders.ByteLevel()
    marks = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([library.AddedToken(mark, special=True, normalized=False) for mark in marks])
    tokenizer.save(str(folder / "tokenizer.json"))
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    }
    _write_json(folder / "tokenizer_config.json", described)


def write_weights(tensors: list[Any], fields: dict[str, Any], folder: Path) -> None:
    """`model.safetensors`, one tensor after the other."""
    torch = foreign("torch")

    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    weights: dict[str, Any] = {}
    for tensor in tensors:
        values = foreign("gguf").quants.dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            values = unpermute(values, fields[heads[kind]])
        weights[hf_name(tensor.name)] = torch.from_numpy(values.copy()).to(torch.bfloat16)
    foreign("safetensors.torch").save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def convert(source: Path, folder: Path) -> None:
    """Write the whole folder; the config comes last, so that a folder with one is whole."""
    reader = foreign("gguf").GGUFReader(source)
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    config = config_of(fields, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(fields, folder)
    write_weights(reader.tensors, fields, folder)
    _write_json(folder / "generation_config.json", {name: config[name] for name in ("bos_token_id", "eos_token_id")})
    _write_json(folder / "config.json", config)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Convert; 2 with one line on stderr when it cannot be done."""
    if len(sys.argv) != 3:
        print("convert: usage: convert.py MODEL.gguf FOLDER", file=sys.stderr)
        return 2
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except (CannotConvert, KeyError, OSError, ValueError) as error:
        print(f"convert: {sys.argv[1]}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
