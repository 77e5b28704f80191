"""bench/reproduce.py: the papers' tables through int4kv's own ops, and what they are about: which recipes fail on which model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import int4kv

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))
from papers import TABLES  # noqa: E402

pytestmark = pytest.mark.cpu_only


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_a_recipe_beside_what_its_paper_says(table):
    names = [row.name for row in TABLES[table].rows]
    assert len(set(names)) == len(names) and "arXiv" in TABLES[table].about
    for row in TABLES[table].rows:
        assert row.differs, row.name
        int4kv.Int4KVConfig(**row.recipe)
    assert any(row.paper for row in TABLES[table].rows) and names[-1].startswith("ours")


def run(*arguments):
    return subprocess.run([sys.executable, str(BENCH / "reproduce.py"), *arguments], capture_output=True, text=True, timeout=600)


def test_uncentred_recipes_fail_on_the_qwen_like_model(tmp_path):
    """SAW-INT4's rows on 512 tokens: each uncentred one loses the model, the same with a centre does not."""
    done = run("--table", "saw-bdr", "--model", "tiny-qwen2", "--windows", "1", "--length", "512", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out.json").read_text())
    kl = {row["recipe"]: row["kl"] for row in found["rows"]}
    assert min(kl[name] for name in ("INT4 plain", "BDR-16", "BDR-64", "BDR-128", "BDR-128, K only")) > 1
    assert kl["BDR-128, K only + centre"] < 0.05 and kl["ours, default"] < kl["BDR-128, K only + centre"] / 4
    assert {row["recipe"]: row["paper"] for row in found["rows"]}["BDR-128"] == "73.11" and "73.11" in done.stdout
    assert found["command"].startswith("python bench/reproduce.py --table saw-bdr") and found["torch"]


def test_bad_arguments_are_named():
    assert "invalid choice: 'kivi'" in run("--table", "kivi").stderr
    assert "error:" in run("--table", "saw-bdr", "--model", "no-such-folder/no-such-model").stderr
