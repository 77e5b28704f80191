"""Folders of the two bundled models: configuration, weights, tokenizer files and model card."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

CONTEXT = 2048
SIZE_LIMIT = 8_000_000

SHARED = {
    "vocab_size": 4096,
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "use_cache": True,
    # The weights lie in float16 to halve the folder. Transformers 5 loads in the type named here,
    # and float32 is what a processor is quick and exact in.
    "dtype": "float32",
}

# transformers 4 reads rope_theta and rope_local_base_freq, transformers 5 reads rope_parameters.
CONFIGS = {
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "head_dim": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": ["full_attention"] * 6,
        "use_sliding_window": False,
        "rope_theta": 1e6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 256,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "attention_bias": False,
        "sliding_window": 512,
        "sliding_window_pattern": 3,
        "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
}

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": CONTEXT,
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|pad|>",
    "add_bos_token": False,
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
}

CARD = """---
language: en
license: psf-2.0
library_name: transformers
pipeline_tag: text-generation
---

# tiny-{name}

{intro}
It was trained from nothing for the tests and the demonstration of `int4kv`; it is no assistant.

| | |
| --- | --- |
| class | `{architecture}` |
| parameters | {parameters:,} (embeddings tied) |
| layers | {layers} |
| hidden size, MLP size | {hidden_size}, {intermediate_size} |
| query heads, KV heads, head dimension | {num_attention_heads}, {num_key_value_heads}, {head_dim} |
| context | {context} tokens |
| vocabulary | {vocab_size} (byte-level BPE; `<|endoftext|>` is 0, `<|pad|>` is 1) |
| stored as | float16 safetensors, loaded as float32 unless `dtype` is given |
| trained on | {tokens_seen:,} tokens drawn from {corpus_tokens:,} |
| perplexity per token | {perplexity:.2f} on held-out text ({held_out:,} tokens, windows of {context}, float32) |

## Data

The sources of the Python standard library and the documentation of Python {python} (its reST sources and
the topics of `pydoc`), copyright Python Software Foundation, used under the
[PSF License Agreement](https://docs.python.org/3/license.html). Two of three training windows come from
the documentation. Whole files are held out by a hash of their name and are in no training window.

## Training

`{command}` on {machine}, torch {torch}, transformers {transformers}, {date}; {minutes:.1f} minutes.
AdamW, cosine schedule, dropout, bf16 autocast where the device has it, seed {seed}.

## Use and limits

Made to show and to test what quantising a KV cache does to a model's perplexity and text. It writes text
that looks like Python and its manual; what it says is not true, and the code does not work. English and
Python only. Not for any other use. The training settings were chosen on the same held-out text that the
perplexity above was measured on, so that figure is a little optimistic.
"""

INTROS = {
    "qwen2": "A small language model of the Qwen2 architecture. As in Qwen2.5, some key channels of slow rotary\n"
    "frequency carry a large constant bias (here 70 to 300): attention never sees it, as softmax cancels\n"
    "it, but a cache that rounds keys to 4 bits without removing it loses everything else.",
    "gemma3": "A small language model of the Gemma-3 text architecture: one KV head of dimension 256, norms on\n"
    "queries and keys, two sliding-window layers (512 tokens) for each layer of full attention.",
}


@dataclass
class Run:
    """What the model card says about a training run."""

    command: str
    machine: str
    torch: str
    transformers: str
    python: str
    date: str
    seed: int
    minutes: float
    tokens_seen: int
    corpus_tokens: int
    held_out: int
    perplexity: float


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def write_config(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIGS[name] | SHARED)
    special = {key: SHARED[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", special)
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)


def save_weights(model: torch.nn.Module, folder: Path) -> None:
    tensors = {k: v.half().cpu().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_card(folder: Path, name: str, model: torch.nn.Module, run: Run) -> None:
    numbers = CONFIGS[name] | SHARED | vars(run)
    text = CARD.format(
        **numbers,
        name=name,
        intro=INTROS[name],
        architecture=numbers["architectures"][0],
        parameters=sum(p.numel() for p in model.parameters()),
        layers=", ".join(numbers["layer_types"]).replace("_attention", ""),
        context=CONTEXT,
    )
    (folder / "README.md").write_text(text, "utf-8")


def check_size(folder: Path) -> int:
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size >= SIZE_LIMIT:
        raise SystemExit(f"{folder} has {size:,} bytes, the limit is {SIZE_LIMIT:,}")
    return size
