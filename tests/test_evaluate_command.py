"""int4kv eval as it is called: recipes in words and in files, what it prints and writes, and mistakes told in one sentence."""

import json

import pytest
from devices import DEVICE
from typer.testing import CliRunner

import int4kv
from int4kv import cli
from int4kv.evaluation.recipes import parse_recipes, read_recipe_file


@pytest.mark.cpu_only
def test_recipes_by_name_and_field():
    fp, default, pair, block = parse_recipes("fp, default,k5v4:bits=8/4,recent=0,v_centre=prompt,3bit:rotation=sylvester/none,skip_layers=0/-1")
    assert fp.config is None and default.config == int4kv.Int4KVConfig(prefill="packed")
    assert pair.name == "k5v4:bits=8/4,recent=0,v_centre=prompt"
    assert pair.config == int4kv.preset("k5v4", bits=(8, 4), recent=0, v_centre="prompt", prefill="packed")
    assert block.config.rotation == ("sylvester", None) and block.config.skip_layers == (0, -1) and block.config.bits == 3


@pytest.mark.cpu_only
def test_recipes_from_a_file_and_a_folder(tmp_path):
    file = tmp_path / "recipes.json"
    file.write_text(json.dumps({"mine": {"preset": "3bit", "layer_bits": {"0": [8, 4], "-1": 8}}, "group": {"group_size": 32}}))
    mine, group = read_recipe_file(file)
    int4kv.Int4KVConfig(bits=5).save(tmp_path)
    [saved] = parse_recipes(f"{tmp_path}:recent=0")
    assert saved.config == int4kv.Int4KVConfig(bits=5, recent=0, prefill="packed")
    assert mine.config == int4kv.preset("3bit", layer_bits={0: (8, 4), -1: 8}, prefill="packed") and group.config.group_size == 32


@pytest.mark.cpu_only
@pytest.mark.parametrize("text, message", [
    ("7bit", "'7bit' is no recipe; accepted: fp, default"),
    ("default:bitz=3", "'default:bitz=3' sets 'bitz'; accepted: bits, codebook"),
    ("default:prefill=exact", "sets 'prefill'; accepted: bits"),
    ("default:bits=7", "bits is 7; accepted: 3, 4, 5, 8, 16"),
    ("default,default", "'default' is named twice"),
])
def test_mistaken_recipes(text, message):
    with pytest.raises(ValueError, match=message):
        parse_recipes(text)


@pytest.mark.cpu_only
@pytest.mark.parametrize("content, message", [("[1]", "is no recipe file"), ("{", "could not be read"), ('{"a": {"bitz": 1}}', "'a' sets 'bitz'")])
def test_mistaken_recipe_files(tmp_path, content, message):
    file = tmp_path / "recipes.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_recipe_file(file)


def run(*options, model="tiny-gemma3"):
    arguments = ["eval", "--model", model, "--device", DEVICE.type, *options]
    return CliRunner().invoke(cli.app, arguments, env={"HF_HUB_OFFLINE": "1", "COLUMNS": "180"})


@pytest.mark.gpu_only
def test_the_command_measures_on_the_device():
    result = run("--recipes", "default", "--windows", "2", "--length", "96", "--divergence")
    assert result.exit_code == 0 and "2 windows, 190 tokens" in result.stdout and "no other token" in result.stdout, result.output


@pytest.mark.cpu_only
def test_the_command_measures_prints_and_writes(tmp_path):
    recipe_file = tmp_path / "mine.json"
    recipe_file.write_text('{"mine": {"bits": [5, 4]}}')
    result = run("--recipes", "fp,default", "--recipe-file", str(recipe_file), "--windows", "2", "--length", "256", "--needle", "--divergence",
                 "--json", str(tmp_path / "found.json"), "--plot", str(tmp_path / "found.png"))
    assert result.exit_code == 0, result.output
    for words in ("2 windows, 510 tokens", "KL to", "share of the needle returned", "no needle", "continued greedily by 128 tokens", "mine"):
        assert words in result.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["recipe"] for row in found["quality"]] == ["fp", "default", "mine"]
    row = found["quality"][2]
    assert row["kl_interval"][0] < row["kl"] < row["kl_interval"][1] and row["bits"]["4096"] > row["bits"]["32768"] and row["kl_tail"] > row["kl"]
    assert found["needle"][0]["recipe"] == "fp" and len(found["divergence"]) == 3
    for name in ("found.png", "found-needle.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.cpu_only
@pytest.mark.parametrize("options, message", [
    (["--recipes", "best"], "--recipes: 'best' is no recipe"),
    (["--recipes", ""], "--recipes is empty"),
    (["--recipe-file", "no/such.json"], "--recipe-file: 'no/such.json' could not be read"),
    (["--text", "no/such.txt"], "--text is 'no/such.txt', which could not be read"),
    (["--json", "no/such/folder/found.json"], "--json is 'no/such/folder/found.json'"),
    (["--plot", "no/such/folder/found.png"], "--plot is 'no/such/folder/found.png'"),
    (["--length", "4096"], "length is 4096; accepted: up to 2048"),
    (["--windows", "5000"], "accepted: 10240000 or more for 5000 windows of 2048"),
    (["--recipes", "default:skip_layers=9"], "'default:skip_layers=9' does not fit the model"),
])
def test_mistakes_are_told_in_one_sentence(options, message):
    result = run(*options)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output, result.output
