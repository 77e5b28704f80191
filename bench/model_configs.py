"""The models of whole decode steps, as published in their config.json, with random weights; or real weights from a folder."""

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Qwen2Config

QWEN = dict(vocab_size=151936, max_position_embeddings=32768, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True,
            num_key_value_heads=2, use_sliding_window=False)


def qwen_05b():
    return Qwen2Config(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, **QWEN)


def qwen_15b():
    return Qwen2Config(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, **QWEN)


def gemma_1b():
    return Gemma3TextConfig(vocab_size=262144, hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, num_attention_heads=4,
                            num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512,
                            max_position_embeddings=32768, rope_theta=1e6, rope_local_base_freq=1e4)


CONFIGS = {"Gemma-3 1B": gemma_1b, "Qwen2.5-1.5B": qwen_15b, "Qwen2.5-0.5B": qwen_05b}


def with_layers(config, layers: int | None):
    """The config cut to its first layers, or as it is."""
    if layers is not None:
        config.num_hidden_layers = layers
        config.layer_types = config.layer_types[:layers]
    return config


def load(name: str, dtype, device: str, layers: int | None = None, path: str | None = None):
    """A model by its name in CONFIGS with random weights (seed 0), or with those in a folder. Raises ValueError for an unknown name."""
    if path is None and name not in CONFIGS:
        raise ValueError(f"model is {name!r}; accepted: {', '.join(CONFIGS)}")
    if path is not None:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    else:
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(with_layers(CONFIGS[name](), layers), dtype=dtype, attn_implementation="sdpa")
    return model.eval().to(device)


def weight_bytes(model) -> int:
    """Bytes of all parameters, tied ones once: what a decode step reads at least."""
    return sum(parameter.nbytes for parameter in model.parameters())
