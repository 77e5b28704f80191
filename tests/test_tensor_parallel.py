"""Models split over processes by transformers' tp_plan="auto" under torchrun: the text of one process, and an end when a rank dies.

Over gloo with --device cpu; with --device cuda over NCCL, one process per GPU, on a machine that has two.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from devices import DEVICE
from tensor_parallel_worker import EXIT_CODE, generate, load
from tiny_models import finished, random_ids, tiny_gemma3, tiny_qwen2
from transformers import AutoModelForCausalLM, GPTNeoXConfig, Olmo2Config, Phi3Config

import int4kv
from int4kv import models

pytestmark = pytest.mark.two_gpus_only if DEVICE.type == "cuda" else pytest.mark.cpu_only
WORKER = Path(__file__).with_name("tensor_parallel_worker.py")
AT_MOST_S = 240  # processes that wait for a dead one for ever are what it is about; a run takes 30 s

CASES = {  # what is saved, options of patch, options of generate
    "default": ("qwen2", {}, {}),
    "packed prefill": ("qwen2", dict(prefill="packed", bits=[4, 3]), {}),
    "calibrated per head": ("qwen2", "calibrated", {}),
    "beams": ("qwen2", {}, dict(num_beams=2)),
    "sliding, one KV head": ("gemma3", {}, {}),
    "norms over all heads": ("olmo2", "calibrated", {}),
    "fused projection": ("phi3", {}, {}),
}
ALL_HEADS = ("norms over all heads", "fused projection")  # every rank gets what these projections give
BUNDLED = {name: (str(models.path(name)), {}, {}) for name in models.NAMES}
OTHERS = {"three KV heads": ("three", {}, {}), "fused and split": ("neox", {}, {}), "dies": ("qwen2", {}, {})}


def tiny(config):
    """A random model of a class with 4 heads and, where it has them apart, 2 KV heads."""
    torch.manual_seed(0)
    shape = dict(vocab_size=300, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 initializer_range=0.12, pad_token_id=0, eos_token_id=None, bos_token_id=None)
    return finished(AutoModelForCausalLM.from_config(config(**shape)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of random models: 4 heads with 2 KV heads, two of them calibrated, 4 with 1, 6 with 3, and one without KV heads of its own."""
    folder = tmp_path_factory.mktemp("models")
    made = {"qwen2": tiny_qwen2(), "gemma3": tiny_gemma3(tie_word_embeddings=False),
            "three": tiny_qwen2(hidden_size=192, num_attention_heads=6, num_key_value_heads=3),
            "olmo2": tiny(Olmo2Config), "phi3": tiny(Phi3Config), "neox": tiny(GPTNeoXConfig)}
    for name, model in made.items():
        model.save_pretrained(folder / name)
    for name in ("qwen2", "olmo2"):
        int4kv.calibrate(made[name], random_ids(1, 200), v_centre=True, rotation="balanced").save(folder / name)
    return folder


def located(cases, saved):
    return {name: (source if os.path.isabs(source) else str(saved / source), *rest) for name, (source, *rest) in cases.items()}


def torchrun(ranks, folder):
    """(exit status, everything written, seconds) of the worker in so many processes."""
    hidden = {} if DEVICE.type == "cuda" else dict(CUDA_VISIBLE_DEVICES="")
    environment = os.environ | hidden | dict(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", WORKER, folder]
    begin = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=AT_MOST_S)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - begin


def split(ranks, cases, folder):
    """What every rank wrote about the cases, and how the run ended."""
    (folder / "cases.json").write_text(json.dumps(cases))
    status, output, seconds = torchrun(ranks, folder)
    files = [folder / f"rank{rank}.json" for rank in range(ranks)]
    assert all(file.exists() for file in files), output
    return [json.loads(file.read_text()) for file in files], status, output


@pytest.fixture(scope="module")
def two(saved, tmp_path_factory):
    return split(2, located(CASES | BUNDLED | OTHERS, saved), tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def expected(saved):
    """What one process generates."""
    return {name: generate(load(path).to(DEVICE), path, options, given)
            for name, (path, options, given) in located(CASES | BUNDLED, saved).items()}


def assert_same_text(ranks, expected, name):
    for rank, results in enumerate(ranks):
        assert results[name].get("tokens") == expected[name]["tokens"], f"rank {rank}: {results[name]}"


@pytest.mark.parametrize("name", CASES | BUNDLED)
def test_two_ranks_write_what_one_process_writes(two, expected, name):
    assert_same_text(two[0], expected, name)


def test_each_rank_holds_the_heads_that_its_queries_read(two, expected):
    for name, whole in expected.items():
        held = whole["heads"] if name in ALL_HEADS else [max(heads // 2, 1) for heads in whole["heads"]]
        assert [held] * 2 == [results[name]["heads"] for results in two[0]]


def test_heads_that_do_not_go_into_the_ranks_are_named(two):
    for results in two[0]:
        assert results["three KV heads"]["error"] == (
            "num_key_value_heads is 3 with 2 tensor-parallel ranks; accepted: multiples and divisors of 2")


def test_a_fused_projection_that_is_split_is_named(two):
    for results in two[0]:
        assert results["fused and split"]["error"] == (
            "model is a GPTNeoXForCausalLM whose query_key_value is split over tensor-parallel ranks; accepted: q_proj, k_proj and v_proj apart, "
            "or query_key_value as 'colwise_gather_output' in the tp_plan: every rank then holds all heads")


def test_a_rank_that_dies_ends_the_others(two):
    """That the run is over before AT_MOST_S is part of it: nobody waits for the dead one."""
    ranks, status, output = two
    assert status != 0 and not any("dies" in results for results in ranks)
    assert f"exitcode  : {EXIT_CODE}" in output and "(local_rank: 1)" in output.split("Root Cause")[1]


@pytest.mark.cpu_only
def test_four_ranks_share_two_heads_and_one(saved, expected, tmp_path):
    names = [name for name in CASES if name not in ("beams", "fused projection")]
    ranks, status, output = split(4, located({name: CASES[name] for name in names}, saved), tmp_path)
    assert status == 0, output
    for name in names:
        assert_same_text(ranks, expected, name)
        assert all(set(results[name]["heads"]) == {2 if name in ALL_HEADS else 1} for results in ranks)
