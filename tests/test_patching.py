"""patch and its opposite, what they leave on a model, what report says, and what is refused."""

import copy
import io
import sys
import weakref

import pytest
import torch
import transformers
from devices import DEVICE
from tiny_models import random_ids, tiny_gemma3, tiny_qwen2
from transformers.cache_utils import DynamicCache

import int4kv
from int4kv.attention import int4kv_attention
from int4kv.naming import CACHE, as_argument, cache_of, check_name
from int4kv.patching import check_transformers


def greedy(model, ids, **options):
    return model.generate(ids, do_sample=False, **({"max_new_tokens": 8} | options))


def test_patch_and_unpatch_leave_no_trace():
    model = tiny_qwen2()
    before, config = set(model.__dict__), copy.deepcopy(model.config.to_dict())
    attention, expected = model.config._attn_implementation, greedy(model, random_ids(1, 20))
    assert int4kv.patch(model) is model and int4kv.is_patched(model)
    assert int4kv.unpatch(model) is model and not int4kv.is_patched(model)
    assert set(model.__dict__) == before and model.config.to_dict() == config
    assert model.config._attn_implementation == attention and not model._forward_pre_hooks
    assert torch.equal(greedy(model, random_ids(1, 20)), expected)
    with pytest.raises(ValueError, match="Qwen2ForCausalLM that is not patched"):
        int4kv.unpatch(model)


def test_patching_again_replaces_the_config():
    model = tiny_qwen2()
    int4kv.patch(int4kv.patch(model, recent=8), recent=16)
    assert model._int4kv.config.recent == 16 and len(model._forward_pre_hooks) == 1


def test_context_managers_nest():
    model = tiny_qwen2()
    with int4kv.patched(model, recent=8):
        with int4kv.patched(model, recent=16) as inner:
            assert inner._int4kv.config.recent == 16
        assert model._int4kv.config.recent == 8
    assert not int4kv.is_patched(model)


def test_a_bad_config_changes_nothing():
    model = tiny_qwen2()
    with pytest.raises(ValueError, match=r"skip_layers is \[9\]; accepted: indices from -2 to 1: the model has 2 layers"):
        int4kv.patch(model, skip_layers=(9,))
    with pytest.raises(ValueError, match="group_size is 64; accepted: divisors of head_dim, 32"):
        int4kv.patch(model, group_size=64)
    assert not int4kv.is_patched(model)


def test_plain_forward_makes_a_cache(model):
    with int4kv.patched(model), torch.no_grad():
        assert isinstance(cache_of(model(random_ids(1, 5))), int4kv.Int4Cache)
        assert isinstance(cache_of(model(random_ids(1, 5), torch.ones(1, 5, device=DEVICE))), int4kv.Int4Cache)
        assert cache_of(model(random_ids(1, 5), use_cache=False)) is None


def test_evaluation_through_forward_reads_the_codes(model):
    """What lm-eval does for log-likelihoods: model(ids).logits. With prefill="packed" it measures the codes."""
    ids = random_ids(1, 100)
    with torch.no_grad():
        stock = model(ids).logits
        with int4kv.patched(model):
            assert torch.allclose(model(ids).logits, stock, atol=1e-4)
        with int4kv.patched(model, prefill="packed"):
            assert (model(ids).logits - stock).abs().max() > 1e-2


def test_training_goes_through_sdpa():
    model = tiny_qwen2()
    with int4kv.patched(model):
        model.train()
        loss = model(random_ids(2, 12), labels=random_ids(2, 12)).loss
        loss.backward()
    assert loss.isfinite() and model.model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0


def test_copies_and_pickles_of_a_patched_model():
    model, ids = tiny_qwen2(), random_ids(1, 20)
    with int4kv.patched(model):
        expected = greedy(model, ids)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert int4kv.is_patched(twin) and torch.equal(greedy(twin, ids), expected)
            assert twin._prepare_cache_for_generation.args == (twin,)


def test_a_saved_patched_model_loads_as_stock(tmp_path):
    model = tiny_qwen2()
    with int4kv.patched(model):
        model.save_pretrained(tmp_path)
    assert "int4kv" not in (tmp_path / "config.json").read_text()
    assert not int4kv.is_patched(transformers.AutoModelForCausalLM.from_pretrained(tmp_path))


def test_skipped_layers_are_exact_and_reported():
    model = tiny_qwen2(num_hidden_layers=4)
    with int4kv.patched(model, skip_layers=(0, 3)):
        cache = cache_of(greedy(model, random_ids(1, 20), return_dict_in_generate=True))
        rows = int4kv.report(model).layers
    assert [r.bits for r in rows] == ["16", "4", "4", "16"]
    assert [r.skipped for r in rows] == ["named in skip_layers", "", "", "named in skip_layers"]
    assert cache.layers[0].codes.tensors[0].dtype == torch.float32


def test_report_is_a_table_of_what_is_held():
    model = tiny_gemma3()
    with int4kv.patched(model):
        cache = cache_of(greedy(model, random_ids(1, 60), return_dict_in_generate=True))
        report = int4kv.report(model)
    assert report.bytes == cache.memory_footprint() == cache.nbytes
    assert [r.window for r in report.layers] == [24, None, 24]
    assert str(report).count("\n") == 5 and "held now, after 67 tokens" in str(report)
    assert str(int4kv.report(cache, 4096)).endswith("full buffers after 4096 tokens, batch size 1")
    with pytest.raises(ValueError, match="tokens is 0"):
        int4kv.report(cache, 0)
    with pytest.raises(ValueError, match="Gemma3ForCausalLM that is not patched"):
        int4kv.report(model)


def test_the_model_does_not_keep_a_cache_alive():
    model = tiny_qwen2()
    with int4kv.patched(model):
        cache = weakref.ref(cache_of(greedy(model, random_ids(1, 20), return_dict_in_generate=True)))
        assert cache() is None
        assert int4kv.report(model).bytes == 0


def test_a_cache_of_another_model_is_refused():
    model = tiny_qwen2()
    with int4kv.patched(model):
        for other, message in ((tiny_gemma3().config, "num_key_value_heads 1; this model has 2"),
                               (tiny_qwen2(head_dim=64).config, "head_dim 64; this model has 32"),
                               (tiny_qwen2(num_hidden_layers=1).config, "layers and sliding windows")):
            with pytest.raises(ValueError, match=f"{CACHE} was made for a model with .*{message}"):
                greedy(model, random_ids(1, 5), **as_argument(int4kv.Int4Cache(other)))


def test_a_cache_with_another_config_keeps_its_own():
    model = tiny_qwen2()
    with int4kv.patched(model, recent=32):
        cache = int4kv.Int4Cache(model.config, recent=0, group_size=32)
        greedy(model, random_ids(1, 5), **as_argument(cache))
    assert cache.layers[0].recent is None


def test_a_mask_of_the_wrong_length_is_refused(model):
    with int4kv.patched(model), torch.no_grad():
        cache = cache_of(model(random_ids(1, 20)))
        last = cache.layers[-1]
        chunk = last.update(*(torch.zeros(1, last.num_heads, 1, last.head_dim, device=DEVICE),) * 2)[0]
        query, mask = torch.zeros(1, 4, 1, last.head_dim, device=DEVICE), torch.ones(1, 1, 1, 3, dtype=torch.bool, device=DEVICE)
        with pytest.raises(ValueError, match="attention_mask covers 3 keys; accepted: the 21"):
            int4kv_attention(model, query, chunk, chunk, mask)


def test_unknown_attention_terms_are_refused():
    with pytest.raises(NotImplementedError, match="s_aux was passed to int4kv attention by Linear"):
        int4kv_attention(torch.nn.Linear(1, 1), None, None, None, None, s_aux=torch.zeros(1))


def test_a_users_own_dynamic_cache_works_and_is_reported(model, monkeypatch):
    ids, warnings = random_ids(1, 20), []
    expected = greedy(model, ids)
    monkeypatch.setattr("int4kv.patching.logger.warning_once", warnings.append)
    with int4kv.patched(model):
        greedy(model, ids)
        assert not warnings
        assert torch.equal(greedy(model, ids, **as_argument(DynamicCache(config=model.config))), expected)
    assert f"{CACHE} is a DynamicCache, which is used as it is: nothing is quantised" in warnings[0]


def test_a_cache_by_its_old_name_is_the_one_used(model):
    """What transformers still takes from those who wrote for versions before 5.24."""
    ids = random_ids(1, 20)
    with int4kv.patched(model), torch.no_grad():
        cache = int4kv.Int4Cache(model.config)
        assert cache_of(model(ids[:, :-1], past_key_values=cache)) is cache
        assert torch.equal(greedy(model, ids, past_key_values=cache), greedy(model, ids)) and cache.get_seq_length() == 27


def test_a_cache_by_its_new_name_is_refused_where_models_do_not_know_it(monkeypatch):
    monkeypatch.setattr("int4kv.naming.CACHE", "past_key_values")
    with pytest.raises(TypeError, match=f"cache is a dict; accepted by models of transformers {transformers.__version__}: past_key_values"):
        check_name({"cache": {}})


def test_continuous_batching_names_a_transformers_without_allocators(model, monkeypatch):
    """In every version: here its module of allocators is hidden."""
    int4kv.patch(model)
    monkeypatch.setitem(sys.modules, "transformers.generation.continuous_batching.cache_allocators", None)
    monkeypatch.setitem(sys.modules, "transformers.generation.continuous_batching", None)
    with pytest.raises(NotImplementedError, match=f"transformers is {transformers.__version__}, whose continuous batching has no cache allocators"):
        model.init_continuous_batching()


@pytest.mark.parametrize("version", ["5.25.0", "5.26.0.dev0", "6.0.0"])
def test_a_transformers_that_is_too_new_is_refused(version):
    with pytest.raises(ImportError, match=f"transformers is {version}; accepted are 4.57 to 5.24"):
        check_transformers(version)
    check_transformers("5.24.1")
