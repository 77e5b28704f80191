"""Tiny random models on the device under test, and the fixtures that share them."""

import warnings

import pytest
import torch
import transformers
from devices import DEVICE
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen2Config, Qwen2ForCausalLM

import int4kv

transformers.logging.set_verbosity_error()
warnings.filterwarnings("ignore")

VOCAB = 300
SPECIAL = dict(pad_token_id=0, eos_token_id=None, bos_token_id=None)


def tiny_qwen2(seed=0, **overrides):
    torch.manual_seed(seed)
    shape = dict(vocab_size=VOCAB, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.12)
    return finished(Qwen2ForCausalLM(Qwen2Config(**(shape | SPECIAL | overrides))))


def tiny_gemma3(seed=0, **overrides):
    torch.manual_seed(seed)
    shape = dict(vocab_size=VOCAB, hidden_size=128, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
                 layer_types=["sliding_attention", "full_attention", "sliding_attention"], num_key_value_heads=1, head_dim=64,
                 max_position_embeddings=4096, sliding_window=24, query_pre_attn_scalar=64, initializer_range=0.12)
    return finished(Gemma3ForCausalLM(Gemma3TextConfig(**(shape | SPECIAL | overrides))))


def finished(model):
    """On the device under test; greedy, endless generation unless a test asks otherwise."""
    model.eval().to(DEVICE)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    model.generation_config.cache_implementation = None
    return model


def weaker(make):
    """An assistant that often, not always, agrees with its model."""
    model = make()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in list(model.parameters())[3:8]:
            p.add_(torch.randn(p.shape, generator=generator).to(DEVICE) * 0.02)
    return model


MAKERS = {"qwen2": tiny_qwen2, "gemma3": tiny_gemma3}


def random_ids(batch, tokens, seed=1):
    return torch.randint(1, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.fixture(params=list(MAKERS))
def model(request):
    """A tiny random model, patched by the test and unpatched afterwards; made once for all tests."""
    found = _models.setdefault(request.param, MAKERS[request.param]())
    yield found
    if int4kv.is_patched(found):
        int4kv.unpatch(found)


@pytest.fixture
def assistant(model):
    name = "qwen2" if isinstance(model, Qwen2ForCausalLM) else "gemma3"
    found = _models.setdefault(name + " assistant", weaker(MAKERS[name]))
    yield found
    if int4kv.is_patched(found):
        int4kv.unpatch(found)


_models = {}
