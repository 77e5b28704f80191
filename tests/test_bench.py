"""bench/: each script runs for a small cell and writes what it promises; the timing interleaves and flushes as it says."""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import int4kv
from int4kv import models, ops
from int4kv.attention import attend_chunk
from int4kv.naming import as_argument

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))
import attend  # noqa: E402
import baselines  # noqa: E402
import model_configs  # noqa: E402
import plots  # noqa: E402
import shapes  # noqa: E402
import tables  # noqa: E402
import timing  # noqa: E402

pytestmark = pytest.mark.cpu_only
TINY = str(Path(models.__file__).parent / "tiny-qwen2")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Calls a script as from a shell, in this process, and returns the rows that it writes."""
    def call(script, *arguments):
        file, plot = tmp_path / f"{script}.json", tmp_path / f"{script}.png"
        monkeypatch.setattr(sys, "argv", [str(BENCH / f"{script}.py"), *map(str, arguments), "--json", str(file), "--plot", str(plot)])
        importlib.import_module(script).main()
        assert plot.read_bytes().startswith(b"\x89PNG")
        rows = json.loads(file.read_text())
        for row in rows:
            assert row["device"] == "cpu" and row["about"]["torch"] == torch.__version__ and row["about"]["date"]
            assert row["about"]["machine"] and row["about"]["command"].startswith(f"python bench/{script}.py ")
        return rows

    return call


# ---- timing ----------------------------------------------------------------------------------------------------------


def test_contenders_take_turns_and_every_other_round_is_reversed():
    calls = []
    timers = {name: lambda name=name: calls.append(name) or 1.0 for name in "abc"}
    times = timing.interleave(timers, dict(a=4, b=4, c=4))
    assert "".join(calls) == "abc" "cba" "abc" "cba" and times == {name: [1.0] * 4 for name in "abc"}


def test_fewer_rounds_are_spread_over_all_of_them():
    plan = timing.schedule(dict(a=12, slow=3))
    assert [i for i, names in enumerate(plan) if "slow" in names] == [3, 7, 11] and all("a" in names for names in plan)


def test_a_contender_that_has_lost_gets_few_rounds():
    """The best two make a ratio: whoever is within reach of the second has not lost, and they never have."""
    assert timing.rounds_for(dict(a=1.0, b=10.0, c=40.0, d=41.0), rounds=25) == dict(a=25, b=25, c=25, d=timing.FEW)
    assert timing.rounds_for(dict(a=1.0, b=1.0, c=9.0), rounds=2) == dict(a=2, b=2, c=2)


def test_warm_up_lasts_and_calls_what_has_lost_only_twice():
    counts = dict(a=0, b=0, slow=0)

    def sample(name, ms):
        counts[name] += 1
        time.sleep(0.002)
        return ms

    begin = time.perf_counter()
    best = timing.warm_up(dict(a=lambda: sample("a", 1.0), b=lambda: sample("b", 2.0), slow=lambda: sample("slow", 50.0)), seconds=0.1)
    assert time.perf_counter() - begin >= 0.1
    assert best == dict(a=1.0, b=2.0, slow=50.0) and counts["slow"] == 2 and counts["a"] > 3


def test_spread_is_the_median_and_the_tenths():
    assert timing.spread([float(i) for i in range(11)][::-1]) == dict(median=5.0, p10=1.0, p90=9.0, rounds=11)
    assert timing.spread([2.0]) == dict(median=2.0, p10=2.0, p90=2.0, rounds=1)


def test_measurements_with_stalls_are_made_again_and_marked():
    assert timing.stalled([0.1] * 7 + [8.1] * 3) and not timing.stalled([0.1] * 9 + [8.1]) and not timing.stalled([20.0] * 7 + [28.0] * 3)
    always = iter([0.1, 8.1] * 100)
    found = timing.measure(dict(a=lambda: next(always)), rounds=10, warm_up_s=0.0)["a"]
    assert found["stalled"] and found["reruns"] == timing.RERUNS
    assert timing.measure(dict(a=lambda: 0.1), rounds=10, warm_up_s=0.0)["a"] == dict(
        median=0.1, p10=0.1, p90=0.1, rounds=10, reruns=0, stalled=False, samples=[0.1] * 10)


def test_paired_ratios_do_not_see_what_slows_down_a_round():
    assert timing.paired_ratio([2.0, 20.0, 4.0], [1.0, 10.0, 2.0]) == dict(median=2.0, p10=2.0, p90=2.0, rounds=3)
    assert timing.paired_ratio([1.0], [1.0, 2.0]) is None


def test_every_cold_call_is_preceded_by_a_flush(monkeypatch):
    clock, seen = timing.CpuClock(), []
    monkeypatch.setattr(clock, "flush", lambda: seen.append("flush"))
    timer = clock.timer([lambda: seen.append("call")])
    assert [timer() >= 0.0 for _ in range(3)] == [True] * 3 and seen == ["flush", "call"] * 3


def test_the_flush_empties_the_caches():
    """256 KiB are read from L2 when hot; after the flush they come from memory. The best of many, so that other load does not matter."""
    clock, data = timing.CpuClock(), torch.ones(2**15, dtype=torch.int64)
    assert clock.buffer.nbytes >= timing.FLUSH_FACTOR * timing.last_level_cache()
    cold, hot = clock.timer([data.sum]), timing.in_a_row([data.sum], "cpu")
    hot()
    assert min(cold() for _ in range(20)) > 1.3 * min(hot() for _ in range(200))


def test_other_clocks_cycle_through_more_than_their_caches():
    clock = timing.CycledClock()
    assert clock.copies(2**20) * 2**20 > timing.CYCLE_BYTES and clock.copies(2**30) == 2 and clock.copies(1) == timing.MOST_COPIES
    calls = []
    assert timing.in_a_row([lambda: calls.append(1), lambda: calls.append(2)], "cpu")() >= 0 and calls == [1, 2]
    with pytest.raises(ValueError, match="device is 'xla'; accepted: cpu, mps, cuda"):
        timing.clock_for("xla")


# ---- what is compared ------------------------------------------------------------------------------------------------


def test_layouts_have_names():
    for name, layout in shapes.MODELS.items():
        assert shapes.parse_layout(str(layout)) == layout == shapes.parse_layout(name) and shapes.model_of(layout) == name
    assert shapes.parse_layout("12q2kv128").flops(10, batch=2) == 4 * 2 * 12 * 128 * 10
    for wrong in ("12q5kv128", "12q128", "0q0kv64"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"layout is '{wrong}'; accepted: like 12q2kv128"):
            shapes.parse_layout(wrong)


@pytest.mark.parametrize("name, millions", [("Gemma-3 1B", 999.9), ("Qwen2.5-1.5B", 1543.7), ("Qwen2.5-0.5B", 494.0)])
def test_configs_have_as_many_parameters_as_the_published_models(name, millions):
    config = model_configs.CONFIGS[name]()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - millions) < 0.1
    layout = shapes.MODELS[name]
    assert (config.num_attention_heads, config.num_key_value_heads, int4kv.config.head_dim_of(config)) == layout
    assert config.layer_types.count("sliding_attention") == (22 if name.startswith("Gemma") else 0)


def test_every_form_of_sdpa_is_the_same_attention():
    q, k, v = attend.inputs(shapes.Layout(4, 2, 64), 40, 2, "cpu")
    found = baselines.sdpa_contenders(q, k, v, timing.CpuClock())
    assert set(found) == {f"sdpa{form}_{dtype}" for form in ("", "_grouped") for dtype in ("fp32", "bf16", "fp16")}
    assert baselines.gqa_names(found) == ["sdpa_fp32", "sdpa_bf16", "sdpa_fp16"]
    expected = baselines.sdpa_gqa(q, k, v)
    for name, (call,) in found.items():
        error = (call().float().reshape(expected.shape) - expected).abs().max()
        assert error < (1e-5 if name.endswith("fp32") else 0.02), name  # rounding of the inputs to 8 or 11 bits


def test_the_packed_call_is_the_one_that_the_cache_makes(monkeypatch):
    q, k, v = attend.inputs(shapes.Layout(4, 2, 64), 200, 1, "cpu")
    chunk = attend.stored_chunk(k, v, int4kv.Int4KVConfig())
    positional, named = attend.attend_arguments(q, chunk)
    seen = {}
    monkeypatch.setattr(ops, "attend", lambda *args, **kwargs: seen.update(args=args, kwargs=kwargs))
    attend_chunk(q, chunk, None, q.shape[-1] ** -0.5)
    assert all(a is b for a, b in zip(seen["args"][:5], positional)) and list(seen["args"][5:]) == positional[5:] == [0, 200, 0.125]
    assert set(seen["kwargs"]) == set(named) and all(value is named[name] for name, value in seen["kwargs"].items())
    assert {"k_rotation", "v_rotation", "k_recent", "v_recent", "recent_start", "recent_window", "codebook"} <= set(named)
    monkeypatch.undo()
    (call,) = attend.packed_contender(q, chunk, timing.CpuClock())
    out, expected = call(), baselines.sdpa_gqa(q, k, v)
    assert (out - expected).norm() < 0.2 * expected.norm()  # 4 bits on random rows
    assert attend.packed_bytes(chunk) == 2 * 2 * 200 * 34 + 2 * 2 * 32 * 64 * 2


@torch.inference_mode()
def test_the_preallocated_fp_caches_decode_as_the_stock_one_does():
    model, _ = models.load("tiny-gemma3", dtype=torch.float32)
    token, ids, logits = torch.tensor([[7]]), torch.arange(5, 45)[None], {}
    for name in ("dynamic", "preallocated", "preallocated_grouped"):
        contender = baselines.CACHES[name]
        model.set_attn_implementation(contender.attention)
        cache = contender.make(model.config, 60)
        model(ids, **as_argument(cache))
        logits[name] = torch.cat([model(token, **as_argument(cache)).logits for _ in range(3)])
    for name, found in logits.items():
        assert torch.allclose(found, logits["dynamic"], atol=1e-4), name


def test_caches_that_cannot_be_made_are_reported():
    config = models.load("tiny-gemma3", dtype=torch.float32)[0].config
    made, missing = baselines.make_caches(["dynamic", "quanto", "int4kv"], config, 64)
    assert isinstance(made["dynamic"], DynamicCache) and isinstance(made["int4kv"], int4kv.Int4Cache) and set(missing) == {"quanto"}
    assert missing["quanto"] == "not installed" or "only full attention" in missing["quanto"]


# ---- the scripts -----------------------------------------------------------------------------------------------------


def test_attend_writes_a_list_of_rows(run):
    rows = run("attend", "--layout", "4q2kv64", "--keys", 64, 160, "--batch", 2, "--rounds", 3, "--threads", 1, "--codebook", "uniform")
    assert [(r["layout"], r["keys"], r["batch"], r["codebook"], r["bits"]) for r in rows] == [("4q2kv64", n, 2, "uniform", 4) for n in (64, 160)]
    for row in rows:
        theirs = row["baselines_ms"]
        assert row["best"] == min(theirs, key=theirs.get) and len(theirs) == 6
        assert row["speedup_over_best"] == pytest.approx(min(theirs.values()) / row["int4kv_ms"])
        assert row["speedup_over_gqa"] == pytest.approx(min(theirs[f"sdpa_{d}"] for d in ("fp32", "bf16", "fp16")) / row["int4kv_ms"])
        assert set(row["spread"]) == {"int4kv", *theirs} and row["about"]["threads"] == 1
        for name, (low, high) in row["spread"].items():
            assert low <= (theirs | dict(int4kv=row["int4kv_ms"]))[name] <= high
        assert row["share_of_read_bandwidth"] == pytest.approx(row["packed_bytes"] / row["read_gb_s"] / 1e6 / row["int4kv_ms"])
        assert row["flops"] == 4 * 2 * 4 * 64 * row["keys"]


def test_quantize_writes_one_token_and_prefill(run):
    one, many = run("quantize", "--layout", "4q2kv64", "--tokens", 1, 128, "--dtype", "fp32", "--rounds", 3, "--threads", 1)
    assert one["tokens"] == 1 and one["kernel_us"] == pytest.approx(one["call_us"] - one["empty_call_us"]) and one["call_us"] > 0
    assert many["tokens"] == 128 and many["share_of_memcpy"] == pytest.approx(many["memcpy_ms"] / many["int4kv_ms"])
    assert many["ns_per_row"] == pytest.approx(1e6 * many["int4kv_ms"] / (2 * 2 * 128))


def test_generate_writes_every_contender_or_why_not(run):
    rows = run("generate", "--model", TINY, "--prefix", 48, 96, "--prefill", 40, "--rounds", 2, "--threads", 1)
    assert [(row["prefix"], row["prefilled"], row["weights"]) for row in rows] == [(48, 40, TINY), (96, 40, TINY)]
    for row in rows:
        assert {"dynamic", "static", "preallocated", "preallocated_grouped", "int4kv"} <= set(row["ms"])
        assert set(row["ms"]) | set(row["not_run"]) == {"quanto", "hqq", "dynamic", "static", "preallocated", "preallocated_grouped", "int4kv"}
        for name, ratio in row["speedup_over"].items():
            assert ratio == pytest.approx(row["ms"][name] / row["ms"]["int4kv"])
            paired = row["paired_speedup_over"][name]
            assert (paired is None) == (row["rounds"][name] != row["rounds"]["int4kv"]) and (paired is None or paired["p10"] <= paired["p90"])
        assert all(0 < row["cache_and_attention_ms"][name] for name in row["ms"])
        assert row["best_fp"] == min((n for n in row["ms"] if n not in ("int4kv", "quanto", "hqq")), key=row["ms"].get)


def test_memory_writes_the_peaks_of_each_process(run):
    rows = run("memory", "--model", TINY, "--length", 512, "--contenders", "dynamic", "int4kv")
    assert [(row["contender"], row["length"]) for row in rows] == [("dynamic", 512), ("int4kv", 512)]
    for row in rows:
        assert row["loaded_bytes"] > row["weight_bytes"] > 0 and row["prefill_peak_bytes"] >= row["after_prefill_bytes"]
        assert row["decode_peak_bytes"] >= row["after_decode_bytes"]
        assert row["prefill_over_dynamic"] == pytest.approx(row["prefill_peak_bytes"] / rows[0]["prefill_peak_bytes"])


def test_reorder_counts_the_bytes_that_each_cache_copies(run):
    rows = run("reorder", "--layout", "4q2kv64", "--tokens", 512, "--beams", 3, "--rounds", 3, "--threads", 1)
    assert [row["operation"] for row in rows] == ["reorder", "select", "repeat"]
    whole = 2 * 2 * 64 * 4  # bytes of a token in one layer, K and V, 2 heads of 64 channels in float32
    for row, sequences in zip(rows, (3, 2, 3)):
        written = row["bytes"]
        assert set(row["ms"]) == set(row["spread"]) == set(written) == {"int4kv", "dynamic_fp32", "dynamic_bf16"}
        assert written["dynamic_fp32"]["most"] >= 512 * sequences * whole and written["int4kv"]["most"] < 0.6 * written["dynamic_fp32"]["most"]
        assert row["speedup_over"]["dynamic_bf16"] == pytest.approx(row["ms"]["dynamic_bf16"] / row["ms"]["int4kv"])
    assert rows[0]["bytes"]["int4kv"]["most"] < 0.2 * rows[0]["bytes"]["dynamic_fp32"]["most"]


def test_serving_fills_the_same_bytes(run):
    fp, int4 = run("serving", "--requests", 4, "--prompt", 8, 200, "--new-tokens", 3, "--memory", 2, "--rounds", 1)
    assert (fp["contender"], int4["contender"]) == ("fp", "int4kv") and fp["fp16_pages"]
    assert int4["same_as_alone"] == int4["requests"] == 4 and int4["tokens_per_s"] > 0
    assert int4["tokens_at_once_over_fp"] == pytest.approx(int4["tokens_at_once"] / fp["tokens_at_once"])


def test_results_can_be_drawn_again(run, tmp_path, monkeypatch):
    run("attend", "--layout", "4q2kv64", "--keys", 64, "--rounds", 2)
    monkeypatch.setattr(sys, "argv", ["plots.py", str(tmp_path / "attend.json"), str(tmp_path / "again.svg")])
    plots.main()
    assert "<svg" in (tmp_path / "again.svg").read_text()
    with pytest.raises(ValueError, match="results are a dict without the name of their benchmark; accepted: lists written by attend, quantize"):
        plots.draw(dict(rows=[]), tmp_path / "none.png")


def test_results_make_markdown_tables(run, tmp_path, monkeypatch, capsys):
    rows = run("attend", "--layout", "4q2kv64", "--keys", 64, "--rounds", 2)
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path / "attend.json")])
    capsys.readouterr()
    tables.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| layout | keys | batch | int4kv, ms | best SDPA, ms | ratio |") and lines[2].startswith("| 4q2kv64 | 64 | 1 | ")
    assert f"| {rows[0]['speedup_over_best']:.2f}" in lines[2] and "floor by bytes, ms" in lines[4] and rows[0]["about"]["command"] in lines[-1]


def test_bad_arguments_are_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attend.py", "--layout", "12q5kv128"])
    with pytest.raises(SystemExit):
        attend.main()
    assert "argument --layout: layout is '12q5kv128'; accepted: like 12q2kv128, with whole groups, or Qwen2.5-0.5B" in capsys.readouterr().err
    with pytest.raises(ValueError, match="model is 'GPT-2'; accepted: Gemma-3 1B, Qwen2.5-1.5B, Qwen2.5-0.5B"):
        model_configs.load("GPT-2", torch.float32, "cpu")
