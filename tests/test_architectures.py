"""Other models behind the same attention interface, tiny and random; and those that are refused, by name."""

import copy

import pytest
import torch
import transformers
from devices import on_device
from tiny_models import SPECIAL, VOCAB, finished, random_ids, tiny_qwen2

import int4kv
from int4kv.naming import cache_of

SHAPE = dict(vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.12)
ARCHITECTURES = {
    "Llama": {}, "Mistral": dict(sliding_window=24), "Qwen3": dict(head_dim=64), "Phi3": {}, "Phi": dict(num_key_value_heads=4),
    "Granite": {}, "Starcoder2": dict(sliding_window=24), "Olmo2": {}, "Cohere": {}, "Gemma": dict(head_dim=64),
    "Qwen3Moe": dict(head_dim=64, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64),
}


def build(name, **overrides):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(SHAPE | SPECIAL | overrides))
    return finished(getattr(transformers, f"{name}ForCausalLM")(config))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name):
    model, ids = build(name, **ARCHITECTURES[name]), random_ids(2, 40)
    options = dict(do_sample=False, max_new_tokens=24)
    expected = model.generate(ids, **options)
    with int4kv.patched(model, bits=16):
        assert torch.equal(model.generate(ids, **options), expected)
    with int4kv.patched(model):
        cache = cache_of(model.generate(ids, return_dict_in_generate=True, **options))
        assert isinstance(cache, int4kv.Int4Cache) and cache.get_seq_length() == 63
        assert cache.layers[0].codes.tensors[0].dtype == torch.uint8


def test_gemma2_softcap_reaches_the_kernel():
    model, ids = build("Gemma2", head_dim=64, query_pre_attn_scalar=64, sliding_window=24, attn_logit_softcapping=2.0), random_ids(2, 40)
    model.set_attn_implementation("eager")
    options = dict(do_sample=False, max_new_tokens=24)
    expected = model.generate(ids, **options)
    with int4kv.patched(model, bits=16):
        assert torch.equal(model.generate(ids, **options), expected)


def tiny_multimodal():
    torch.manual_seed(0)
    text = dict(SHAPE, num_key_value_heads=1, head_dim=64, sliding_window=24, query_pre_attn_scalar=64, **SPECIAL)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=299,
                                       image_token_id=299, boi_token_index=297, eoi_token_index=298, **SPECIAL)
    return finished(transformers.Gemma3ForConditionalGeneration(config))


def test_gemma3_inside_the_multimodal_model():
    """Image tokens see each other both ways, so prefill comes with a mask; the vision tower keeps its own attention."""
    model = tiny_multimodal()
    ids = random_ids(2, 40).clamp(max=290)
    ids[:, 10:14] = 299
    mask = torch.ones_like(ids)
    ids[1, :6], mask[1, :6] = 0, 0
    options = dict(attention_mask=mask, pixel_values=on_device(torch.randn(2, 3, 28, 28)), token_type_ids=(ids == 299).long(),
                   do_sample=False, max_new_tokens=24)
    expected = model.generate(ids, **options)
    for prefill in ("exact", "packed"):
        with int4kv.patched(model, bits=16, prefill=prefill):
            assert model.config.text_config._attn_implementation == "int4kv"
            assert model.config.vision_config._attn_implementation != "int4kv"
            assert torch.equal(model.generate(ids, **options), expected)
    with int4kv.patched(model):
        model.generate(ids, **options)


def t5():
    config = transformers.T5Config(vocab_size=50, d_model=32, d_kv=32, d_ff=64, num_layers=1, num_heads=1)
    return transformers.T5ForConditionalGeneration(config)


def mamba():
    return transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1))


def gpt_oss():
    return build("GptOss", head_dim=32, num_local_experts=2, num_experts_per_tok=1)


REFUSED = [
    (t5, r"T5ForConditionalGeneration \(an encoder-decoder\)"),
    (mamba, "MambaForCausalLM"),
    (gpt_oss, r"GptOssForCausalLM \(attention sinks\)"),
    (lambda: build("Llama", head_dim=48), r"LlamaForCausalLM \(head_dim 48; accepted: multiples of 32"),
    (lambda: tiny_qwen2().model, r"Qwen2Model \(it has no generate\(\)"),
    (lambda: torch.nn.Linear(2, 2), r"Linear \(not a transformers model\)"),
]


@pytest.mark.parametrize("make, message", REFUSED)
def test_unsupported_models_are_refused_by_name(make, message):
    model = make()
    before = copy.deepcopy(model.config.to_dict()) if hasattr(model, "config") else None
    with pytest.raises(ValueError, match=f"model is a {message}"):
        int4kv.patch(model)
    assert not int4kv.is_patched(model)
    assert before is None or model.config.to_dict() == before
