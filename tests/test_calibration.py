"""int4kv.calibrate: what it measures, that the model stays as it was, the transforms it fits, and the folder it is kept in."""

import json

import pytest
import torch
from devices import DEVICE, on_cpu
from tiny_models import random_ids, tiny_gemma3, tiny_qwen2
from transformers.cache_utils import DynamicCache

import int4kv
from int4kv import models
from int4kv.calibration.calibrate import token_rows
from int4kv.calibration import Calibration, LayerCalibration
from int4kv.evaluation.evaluate import evaluate, windows
from int4kv.calibration.learning import balanced, cayley, channel_lambda, learned, reflections, trace
from int4kv.evaluation.recipes import Recipe
from int4kv.naming import as_argument
from int4kv.rotation import rotation_matrix

EVERYTHING = dict(centre=True, v_centre=True, channel_lambda=True, rotation="balanced")


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- what is measured --------------------------------------------------------------------------------------------------------------------


def keys_and_values(model, ids):
    """Every layer's keys and values, those that a sliding layer's cache would forget too."""
    cache = DynamicCache()
    model(ids, **as_argument(cache), use_cache=True)
    return [(on_cpu(layer.keys).float(), on_cpu(layer.values).float()) for layer in cache.layers]


def test_centres_are_the_means_of_all_keys_and_values(model):
    ids = random_ids(1, 60)
    found = int4kv.calibrate(model, ids, v_centre=True).calibration
    for layer, (k, v) in zip(found.layers, keys_and_values(model, ids), strict=True):
        for centre, states in ((layer.k_centre, k), (layer.v_centre, v)):
            assert torch.allclose(centre, states.mean((0, 2)), atol=1e-5)  # fp32 activations of size 1


def test_texts_are_read_in_rows():
    assert [row.shape for row in token_rows(random_ids(2, 70), None, 100, 32)] == [(1, 32), (1, 32), (1, 6), (1, 30)]
    _, tokenizer = models.load("tiny-qwen2")
    whole, listed = (token_rows(texts, tokenizer, 1000, 64) for texts in ("def f(x):\n" * 9, ["def f(x):\n" * 9]))
    assert all(map(torch.equal, whole, listed)) and sum(row.numel() for row in whole) == len(tokenizer("def f(x):\n" * 9)["input_ids"])


def test_the_model_is_left_as_it_was(model):
    ids = random_ids(1, 40)
    state = {name: id(value) for name, value in vars(model).items()}
    attention, before = model.config._attn_implementation, model(ids).logits
    int4kv.calibrate(model, ids, **EVERYTHING)
    assert model.config._attn_implementation == attention and {name: id(value) for name, value in vars(model).items()} == state
    assert torch.equal(model(ids).logits, before)


def test_the_model_is_left_as_it_was_when_it_fails(model, monkeypatch):
    attention = model.config._attn_implementation
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of memory"):
        patched.setattr("int4kv.calibration.observing.LayerMoments.add", lambda *states: (_ for _ in ()).throw(RuntimeError("out of memory")))
        int4kv.calibrate(model, random_ids(1, 40))
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("kind", [dict(), dict(centre=False), dict(rotation="balanced"), dict(rotation="balanced", base=None),
                                  dict(rotation="learned"), dict(rotation="householder"), EVERYTHING,
                                  dict(channel_lambda=True, config=int4kv.Int4KVConfig(rotation=("srft", None)))])
def test_eight_bits_through_a_calibrated_cache_are_the_model(model, kind):
    """Whatever is fitted is undone when it is read: what is left is the rounding of 8 bits."""
    ids = random_ids(1, 60)
    config = int4kv.calibrate(model, ids, **kind)
    expected = model(ids).logits
    with int4kv.patched(model, config.with_overrides(bits=8, prefill="packed")):
        found = model(ids).logits
    assert (found - expected).norm() < 0.02 * expected.norm()  # a step of 1/127 of the largest, in every layer, on random weights


def test_it_works_in_inference_mode():
    with torch.inference_mode():
        config = int4kv.calibrate(tiny_qwen2(), random_ids(1, 40), rotation="learned")
    assert config.rotation == "learned" and config.calibration.layers[0].k_rotation.shape == (2, 32, 32)


@pytest.mark.parametrize("given, message", [
    (dict(texts=torch.zeros(4, dtype=torch.long)), r"texts has shape \[4\]; accepted: strings, or token ids \[batch, tokens\], not empty"),
    (dict(texts="text"), "tokenizer is None; accepted: the model's"),
    (dict(tokens=0), "texts has 60 tokens and tokens is 0; accepted: 1 or more"),
    (dict(rotation="random"), "rotation is 'random'; accepted: None, 'balanced', 'learned', 'householder'"),
    (dict(base="learned"), "base is 'learned'; accepted: "),
])
def test_arguments_that_do_not_fit_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        int4kv.calibrate(tiny_qwen2(), **(dict(texts=random_ids(1, 60)) | given))


def test_what_cannot_be_calibrated_is_refused():
    model, ids = tiny_qwen2(), random_ids(1, 60)
    config = int4kv.calibrate(model, ids, rotation="balanced")
    with pytest.raises(ValueError, match="config has rotation 'learned' and is calibrated anew"):
        int4kv.calibrate(model, ids, config=config)
    with int4kv.patched(model), pytest.raises(ValueError, match="model is patched; accepted: one that is not"):
        int4kv.calibrate(model, ids)


@pytest.mark.cpu_only
def test_a_calibrated_centre_beats_the_prompts():
    """On text that was not calibrated on; KL 0.0016 against 0.0020 over four windows of 1024."""
    model, tokenizer = models.load("tiny-qwen2", DEVICE)
    ids = windows(tokenizer, models.HELDOUT.read_text(), 512, 6)
    config = int4kv.calibrate(model, ids[:4])
    found = evaluate(model, ids[4:], [Recipe("prompt", int4kv.Int4KVConfig()), Recipe("calibrated", config)], chunk=512)
    assert found["calibrated"].kl < 0.95 * found["prompt"].kl, {name: quality.kl for name, quality in found.items()}


# ---- what is fitted ----------------------------------------------------------------------------------------------------------------------


def moment(head_dim, decay, seed):
    """A covariance [1, n, n] whose spectrum falls by `decay` in all, in a random basis."""
    basis = torch.linalg.qr(rows(head_dim, head_dim, seed=seed).double()).Q
    return (basis * torch.linspace(0, -decay, head_dim, dtype=torch.float64).exp() @ basis.T).unsqueeze(0)


def cost(matrix, c, w):
    inverse = torch.linalg.inv(matrix)
    return (trace(matrix @ c @ matrix.mT) * trace(inverse.mT @ w @ inverse)).item()


@pytest.mark.cpu_only
def test_balanced_reaches_the_bound():
    c, w = moment(64, 4.0, seed=1), moment(64, 4.0, seed=2)
    least = torch.linalg.matrix_norm(torch.linalg.cholesky(c).mT @ torch.linalg.cholesky(w), "nuc").item() ** 2
    found = cost(balanced(c, w), c, w)
    assert least <= found < 1.03 * least  # the ridge of 1 % of the variance keeps it from the bound itself
    assert found < 0.7 * cost(torch.eye(64, dtype=torch.float64).unsqueeze(0), c, w)


@pytest.mark.cpu_only
def test_lambda_is_the_best_diagonal():
    c, w = moment(32, 2.0, seed=1), moment(32, 2.0, seed=2)
    best = channel_lambda(c, w).double()
    assert best.log().mean().abs() < 1e-6
    found = cost(torch.diag_embed(1 / best), c, w)
    for seed in range(20):
        other = best * (0.2 * rows(1, 32, seed=seed).double()).exp()
        assert found < cost(torch.diag_embed(1 / other), c, w)


@pytest.mark.cpu_only
def test_parametrisations_make_rotations():
    identity = torch.eye(24)
    assert torch.equal(cayley(torch.zeros(1, 24, 24))[0], identity)
    u, product = rows(2, 24, 6), identity
    for column in u.unbind(-1):
        product = product @ (identity - 2 * column.unsqueeze(-1) @ column.unsqueeze(-2) / column.square().sum(-1)[:, None, None])
    assert torch.allclose(reflections(u), product, atol=1e-5)
    for made in (cayley(rows(2, 24, 24)), reflections(u)):
        assert torch.allclose(made @ made.mT, identity.expand(2, -1, -1), atol=1e-4)  # a solve of condition 100 in fp32


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", ["cayley", "householder"])
def test_a_learned_rotation_rounds_better(kind):
    """Rows of a few directions, as values have: their rotated channels can be turned towards the levels."""
    x = rows(1, 1024, 4) @ rows(4, 64, seed=1) + 0.05 * rows(1, 1024, 64, seed=2)
    base = rotation_matrix("hadamard", 64).float()
    found = learned(x, base, 4, "lloyd", kind)
    assert torch.allclose(found @ found.mT, torch.eye(64), atol=1e-4)
    assert rounding_error(x, found) < 0.95 * rounding_error(x, base)


def rounding_error(x, matrix):
    y = x @ matrix.mT
    codes, scales = int4kv.codebook.encode(y, 64, 4, "lloyd")
    return (int4kv.codebook.decode(codes, scales, 64, "lloyd") - y).square().sum().item()


# ---- where it is kept --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated():
    config = int4kv.Int4KVConfig(bits=(5, 4), recent=16, layer_bits={-1: 8, 0: (4, 3)}, skip_layers=(1,))
    return int4kv.calibrate(tiny_gemma3(), random_ids(1, 60), config=config, **EVERYTHING)


@pytest.mark.cpu_only
@pytest.mark.parametrize("with_tensors", [True, False])
def test_a_saved_config_is_the_same_when_loaded(tmp_path, calibrated, with_tensors):
    config = calibrated if with_tensors else int4kv.preset("saw-int4", layer_bits={0: 8})
    config.save(tmp_path / "new" / "folder")
    found = int4kv.Int4KVConfig.load(tmp_path / "new" / "folder")
    assert found == config and found.to_dict() == config.to_dict()
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["int4kv.json"] + ["int4kv.safetensors"] * with_tensors
    if with_tensors:
        assert found.calibration.model_shape == config.calibration.model_shape
        for mine, its in zip(config.calibration.layers, found.calibration.layers, strict=True):
            assert mine.tensors().keys() == its.tensors().keys()
            assert all(torch.equal(tensor, its.tensors()[name]) for name, tensor in mine.tensors().items())


@pytest.mark.cpu_only
def test_a_save_that_fails_leaves_what_was_there(tmp_path, calibrated, monkeypatch):
    calibrated.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        calibrated.with_overrides(recent=0).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def edited(**changes):
    def damage(folder):
        found = json.loads((folder / "int4kv.json").read_text())
        (folder / "int4kv.json").write_text(json.dumps(found | changes))
    return damage


@pytest.mark.cpu_only
@pytest.mark.parametrize("damage, message", [
    (lambda folder: (folder / "int4kv.json").unlink(), r"int4kv.json does not exist; accepted: a folder that Int4KVConfig.save wrote"),
    (lambda folder: (folder / "int4kv.json").write_text("{"), "int4kv.json is not JSON"),
    (lambda folder: (folder / "int4kv.json").write_text('{"bits": 4}'), "int4kv.json is not a config of int4kv"),
    (edited(version=2), "int4kv.json has version 2; accepted: 1"),
    (edited(config={"bits": 4, "colour": "red"}), r"int4kv.json has or lacks the fields \['centre', .*'colour'"),
    (lambda folder: (folder / "int4kv.safetensors").unlink(), "int4kv.safetensors does not exist"),
    (lambda folder: (folder / "int4kv.safetensors").write_bytes(b"x"), "safetensors is not the file that was saved with int4kv.json"),
    (edited(model={"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 64}),
     r"k_centre of layer 0 is .* \[1, 64\]; accepted: .* \[2, 64\]"),
])
def test_a_damaged_folder_is_named(tmp_path, calibrated, damage, message):
    calibrated.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        int4kv.Int4KVConfig.load(tmp_path)


@pytest.mark.cpu_only
def test_a_calibration_of_another_model_is_refused(calibrated):
    calibrated.calibration.check_model(tiny_gemma3().config)
    with pytest.raises(ValueError, match="measured on a model with num_hidden_layers 3; this model has 2"):
        calibrated.calibration.check_model(tiny_qwen2().config)
    with pytest.raises(ValueError, match="measured on a model with head_dim 64; this model has 32"):
        calibrated.calibration.check_model(tiny_gemma3(head_dim=32).config)
    with pytest.raises(ValueError, match=r"k_centre of layer 0 is torch.float32 \[2, 32\]; accepted: torch.float32 \[2, 64\]"):
        Calibration((LayerCalibration(k_centre=torch.zeros(2, 32)),), 2, 64)
