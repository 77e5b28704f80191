"""int4kv.calibrate(model, texts): an Int4KVConfig with what sample text says about a model's keys, values and queries."""

from dataclasses import replace

import torch

from ..config import Int4KVConfig, head_dim_of, kv_heads_of, make_config, pair, text_config
from ..patching import check_supported, is_patched
from ..progress import bars
from ..rotation import MATRICES, SIGNED, rotation_matrix
from .budget import choose_bits
from .learning import balanced, channel_lambda, learned
from .observing import LayerMoments, measure
from .tensors import Calibration, LayerCalibration

ROTATIONS = (None, "balanced", "learned", "householder")
BASES = (*SIGNED, *MATRICES, None)
SAMPLE = 1024  # rows of a head that a rotation is learned from


def calibrate(
    model, texts, *, config: Int4KVConfig | None = None, tokenizer=None, centre: bool = True, v_centre: bool = False,
    channel_lambda: bool = False, rotation: str | None = None, base: str | None = "hadamard", tokens: int = 8192, length: int = 2048,
    budget: dict | None = None, progress: bool = False,
) -> Int4KVConfig:
    """A config with calibrated tensors and bits for a model. The model is run on the texts, and left as it is.

    texts: a string or a list of them (with their tokenizer), or token ids [batch, tokens] without padding; read in rows of up to `length`
        tokens, `tokens` in all.
    config: what to start from; None for the default one.
    centre, v_centre: measure the mean key, the mean value of every head; False leaves the config's centre, v_centre.
    channel_lambda: divide each rotated channel so that the score (K) or output (V) has the least error.
    rotation: None keeps the config's. "balanced": the invertible matrix of the least error, in closed form. "learned": a rotation, by
        gradient descent in Cayley's parametrisation; "householder": the same of head_dim / 2 reflectors (both: arXiv 2605.05699).
        Any of these, or lambda, takes 4 head_dim^2 bytes per KV head, K and V each, twice that where it is not orthonormal.
    base: the fixed rotation that a calibrated one starts from (learned) or ends with (balanced); None for none.
    budget: {"bits": bits per value, all bytes counted} or {"kl": mean KL in nats}: choose bits per layer, for K and V apart, from 3, 4, 5
        and 8 (int4kv.calibration.budget). With "tokens", those of the texts that KL is measured on (2048).
    progress: show bars, and a table of the bits chosen.
    Raises ValueError for a model that is patched or not supported, and for arguments that do not fit.
    """
    config = make_config(config)
    _check(model, config, rotation, base)
    rows = token_rows(texts, tokenizer, tokens, length)
    config = replace(config, **_wanted(centre, v_centre, channel_lambda, rotation), calibration=_calibration(model, None))
    with bars(progress) as bar:
        every = max(1, sum(row.numel() for row in rows) // SAMPLE) if rotation in ("learned", "householder") else 0
        layers = measure(model, rows, every, bar("reading", len(rows)))
        advance = bar("fitting", len(layers))
        found = tuple(_fit_layer(layer, config.for_layer(i, len(layers)), rotation, base, advance) for i, layer in enumerate(layers))
    config = replace(config, calibration=_calibration(model, found))
    return config if budget is None else choose_bits(model, rows, config, budget, progress=progress).config


def _check(model, config, rotation, base):
    check_supported(model)
    if is_patched(model):
        raise ValueError("model is patched; accepted: one that is not, so that keys are measured as they are")
    if rotation not in ROTATIONS:
        raise ValueError(f"rotation is {rotation!r}; accepted: {', '.join(map(repr, ROTATIONS))}")
    if rotation is None and "learned" in pair(config.rotation):
        raise ValueError(f"config has rotation {config.rotation!r} and is calibrated anew; accepted: a fixed one, or rotation='learned'")
    if base not in BASES:
        raise ValueError(f"base is {base!r}; accepted: {', '.join(map(repr, BASES))}")


def _calibration(model, layers) -> Calibration:
    """layers: a LayerCalibration each, or None where nothing is measured yet."""
    empty = (LayerCalibration(),) * text_config(model.config).num_hidden_layers
    return Calibration(layers or empty, kv_heads_of(model.config), head_dim_of(model.config))


def _wanted(centre, v_centre, channel_lambda, rotation) -> dict:
    wanted = {"centre": "calibrated"} if centre else {}
    if v_centre:
        wanted["v_centre"] = "calibrated"
    if channel_lambda:
        wanted["channel_lambda"] = True
    if rotation is not None:
        wanted |= {"rotation": "learned", "hadamard_block": None}
    return wanted


def token_rows(texts, tokenizer, tokens: int, length: int) -> list[torch.Tensor]:
    """Token ids [1, up to length] of texts, `tokens` in all at most."""
    if isinstance(texts, torch.Tensor):
        if texts.dim() != 2 or texts.numel() == 0:
            raise ValueError(f"texts has shape {list(texts.shape)}; accepted: strings, or token ids [batch, tokens], not empty")
        sequences = list(texts)
    else:
        if tokenizer is None:
            raise ValueError("tokenizer is None; accepted: the model's, for texts that are strings")
        sequences = [torch.tensor(tokenizer(text, verbose=False)["input_ids"]) for text in ([texts] if isinstance(texts, str) else texts)]
    pieces = [piece for sequence in sequences if sequence.numel() for piece in sequence.split(length)]
    ends = torch.tensor([0] + [len(piece) for piece in pieces]).cumsum(0).tolist()
    rows = [piece[: tokens - begin].unsqueeze(0) for piece, begin in zip(pieces, ends) if begin < tokens]
    if not rows:
        raise ValueError(f"texts has {ends[-1]} tokens and tokens is {tokens}; accepted: 1 or more")
    return rows


# ---- one layer ---------------------------------------------------------------------------------------------------------------------------


def _fit_layer(layer: LayerMoments, config: Int4KVConfig, rotation, base, advance) -> LayerCalibration:
    weights = layer.q.second_moment(), torch.eye(layer.v.mean.shape[-1], dtype=torch.float64).expand_as(layer.v.second_moment())
    found = {}
    for which, (name, moments, weight) in enumerate(zip("kv", (layer.k, layer.v), weights)):
        kind = (config.centre, config.v_centre)[which]
        centre = None if kind is None else moments.mean
        matrix, fitted = _fit_matrix(moments, centre, weight, config, which, rotation, base)
        found[f"{name}_centre"] = moments.mean.float() if kind == "calibrated" else None
        found[f"{name}_rotation"] = fitted
        found[f"{name}_lambda"] = _fit_lambda(matrix, moments.second_moment(centre), weight) if config.channel_lambda else None
    advance()
    return LayerCalibration(**found)


def _fit_matrix(moments, centre, weight, config, which, rotation, base):
    """(the matrix that a side's rows go through, float64; the same in float32 if it is calibrated, else None)."""
    head_dim = weight.shape[-1]
    if rotation is None:
        name = pair(config.rotation)[which]
        block = config.hadamard_block if name in SIGNED and (head_dim & -head_dim) > (config.hadamard_block or head_dim) else None
        return rotation_matrix(name, head_dim, block), None
    start = rotation_matrix(base, head_dim)
    if rotation == "balanced":
        matrix = start @ balanced(moments.second_moment(centre), weight)
    else:
        rows = moments.sample() if centre is None else moments.sample() - centre.float().unsqueeze(1)
        bits = min(pair(config.bits)[which], 8)
        matrix = learned(rows, start.float(), bits, config.codebook, "householder" if rotation == "householder" else "cayley")
    return matrix.double(), matrix.float().contiguous()


def _fit_lambda(matrix, moment, weight):
    inverse = torch.linalg.inv(matrix)
    return channel_lambda(matrix @ moment @ matrix.transpose(-1, -2), inverse.transpose(-1, -2) @ weight @ inverse)
