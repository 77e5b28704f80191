"""What to quantise and how: one frozen dataclass, checked when it is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch

EXACT_BITS = 16
BITS = (3, 4, 5, 8, EXACT_BITS)
CODEBOOKS = ("lloyd", "uniform", "absmax", "asymmetric")
ROTATIONS = ("hadamard", "sylvester", "srft", "householder", "learned", None)
CENTRES = ("prompt", "calibrated", None)
ROLLBACK = 32  # tokens that a crop may always take back without losing exact rows or a sliding layer's window


def _check(name: str, value, accepted: str, ok: bool) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}; accepted: {accepted}")


def _one_of(name: str, value, choices: tuple) -> None:
    _check(name, value, ", ".join(map(repr, choices)), any(value is c or (type(value) is type(c) and value == c) for c in choices))


def _is_count(value, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def pair(value) -> tuple:
    """(K's, V's) of a setting that is one value for both or a pair."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _check_pair(name: str, value, choices: tuple) -> None:
    _check(name, value, "one value or a pair (K, V)", len(pair(value)) == 2)
    for one in pair(value):
        _one_of(name, one, choices)


@dataclass(frozen=True)
class Int4KVConfig:
    """How an Int4Cache stores keys and values. A pair (K, V) stands where they differ.

    bits: 4; 3, 5 or 8; 16 stores rows as they are, in the model's own dtype, through the same path. Or a pair (K, V).
    codebook: "lloyd" (Lloyd-Max levels for a Gaussian, the best of four clips; at 8 bits uniform), "uniform" (mid-rise, least-squares
        scale), "absmax" (scale = largest / 7, as arXiv 2605.05699 has it) or "asymmetric" (minimum and scale, as SAW-INT4 has it).
    group_size: channels that share one scale: 32, 64, 128, or None for the whole head_dim.
    rotation: "hadamard" (randomised, fixed signs), "sylvester" (Hadamard without signs: SAW-INT4), "srft" (sign-randomised real Fourier
        transform: arXiv 2605.05699), "householder" (head_dim / 2 fixed reflectors), "learned" (from int4kv.calibrate) or None.
        Or a pair (K, V).
    hadamard_block: Hadamard rotations in blocks of 16, 32, 64 or 128 channels, of fewer where head_dim asks for it; None for the largest.
    centre: a constant subtracted from every key of a sequence, exact under softmax: "prompt" (mean of its first centre_tokens real keys,
        shrunk where they disagree, padding left out; of fewer while there are fewer), "calibrated" or None.
    v_centre: the same for values, added once to the output: None (default), "prompt" or "calibrated".
    channel_lambda: True divides each rotated channel by its calibrated lambda (arXiv 2605.05699).
    calibration: centres, lambdas and learned rotations, from int4kv.calibrate.
    recent: the newest tokens that every query reads exactly, beside their codes; 0 turns the ring off.
    sinks: the first tokens of a sequence that full-attention layers read exactly.
    start: a sequence of up to so many tokens is read exactly, all of it.
    prefill: "exact" (a chunk attends to its own keys as they are) or "packed" (every key and value through the codes, as decoding token
        by token would; for evaluation).
    layer_bits: {layer: bits or (K, V)}, for layers unlike the others; negative layers count from the last.
    skip_layers: layers kept in the model's dtype; negative ones count from the last.
    max_cache_len: tokens that full-attention layers hold at most, preallocated; None grows: by doubling, from 8192 tokens on by a quarter.
    check_finite: raise ValueError on NaN or infinity in new keys or values, instead of storing NaN. Costs a sync.
    """

    bits: int | tuple = 4
    codebook: str = "lloyd"
    group_size: int | None = None
    rotation: str | tuple | None = "hadamard"
    hadamard_block: int | None = None
    centre: str | None = "prompt"
    v_centre: str | None = None
    centre_tokens: int = 32
    channel_lambda: bool = False
    calibration: object = field(default=None, repr=False, compare=False)
    recent: int = 32
    sinks: int = 0
    start: int = 0
    prefill: str = "exact"
    layer_bits: tuple = ()
    skip_layers: tuple = ()
    max_cache_len: int | None = None
    check_finite: bool = False

    def __post_init__(self):
        _check_pair("bits", self.bits, BITS)
        _one_of("codebook", self.codebook, CODEBOOKS)
        _one_of("group_size", self.group_size, (None, 32, 64, 128))
        _check_pair("rotation", self.rotation, ROTATIONS)
        _one_of("hadamard_block", self.hadamard_block, (None, 16, 32, 64, 128))
        for name in ("centre", "v_centre"):
            _one_of(name, getattr(self, name), CENTRES)
        _one_of("prefill", self.prefill, ("exact", "packed"))
        for name, least in (("centre_tokens", 1), ("recent", 0), ("sinks", 0), ("start", 0)):
            _check(name, getattr(self, name), f"{least} or more", _is_count(getattr(self, name), least))
        _check("max_cache_len", self.max_cache_len, "None, 1 or more", self.max_cache_len is None or _is_count(self.max_cache_len, 1))
        for name in ("bits", "rotation"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_layers()
        self._check_calibration()

    def _check_layers(self):
        object.__setattr__(self, "skip_layers", tuple(self.skip_layers))
        _check("skip_layers", self.skip_layers, "layer indices", all(isinstance(i, int) for i in self.skip_layers))
        given = self.layer_bits.items() if isinstance(self.layer_bits, Mapping) else self.layer_bits
        object.__setattr__(self, "layer_bits", tuple(sorted((layer, pair(bits)) for layer, bits in given)))
        for layer, bits in self.layer_bits:
            _check("layer_bits", layer, "layer indices", isinstance(layer, int))
            _check_pair("layer_bits", bits, BITS)

    def _check_calibration(self):
        needed = [name for name, wanted in (
            ("centre", self.centre == "calibrated"), ("v_centre", self.v_centre == "calibrated"),
            ("channel_lambda", self.channel_lambda), ("rotation", "learned" in pair(self.rotation))) if wanted]
        _check("calibration", self.calibration, f"the result of int4kv.calibrate, for {', '.join(needed)}",
               not needed or self.calibration is not None)

    @property
    def k_bits(self) -> int:
        return pair(self.bits)[0]

    @property
    def v_bits(self) -> int:
        return pair(self.bits)[1]

    @property
    def is_exact(self) -> bool:
        """True when neither keys nor values are quantised."""
        return pair(self.bits) == (EXACT_BITS, EXACT_BITS)

    def exact_window(self, tokens: int) -> int:
        """Newest tokens that are read exactly in a sequence of so many: those of the ring, or all of up to `start` tokens."""
        return max(self.recent, self.start if tokens <= self.start else 0)

    def with_overrides(self, **overrides) -> "Int4KVConfig":
        """A copy with some fields changed; an unknown name raises TypeError."""
        return replace(self, **overrides) if overrides else self

    def for_layer(self, layer_idx: int, num_layers: int) -> "Int4KVConfig":
        """What one layer does: its own bits; skipped layers store their rows as they are."""
        bits = dict((layer % num_layers, bits) for layer, bits in self.layer_bits).get(layer_idx, pair(self.bits))
        if layer_idx in [i % num_layers for i in self.skip_layers]:
            bits = (EXACT_BITS, EXACT_BITS)
        one = replace(self, bits=bits, layer_bits=(), skip_layers=())
        if not one.is_exact:
            return one
        return replace(one, rotation=None, centre=None, v_centre=None, channel_lambda=False, recent=0, sinks=0, start=0)

    def check_layers(self, num_layers: int) -> None:
        """Raise ValueError when a layer is named that a model of so many layers does not have."""
        for name, named in (("skip_layers", self.skip_layers), ("layer_bits", [layer for layer, _ in self.layer_bits])):
            unknown = [i for i in named if not -num_layers <= i < num_layers]
            _check(name, unknown, f"indices from {-num_layers} to {num_layers - 1}: the model has {num_layers} layers", not unknown)

    def save(self, folder) -> None:
        """Write int4kv.json and, with a calibration, int4kv.safetensors into a folder, next to a model."""
        from .calibration.tensors import save_config

        save_config(self, folder)

    @classmethod
    def load(cls, folder) -> "Int4KVConfig":
        """Read what save() wrote. Raises ValueError, naming the file and what is wrong with it."""
        from .calibration.tensors import load_config

        return load_config(folder)

    def to_dict(self) -> dict:
        """Plain values, without the calibration."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "calibration"}
        return values | {"layer_bits": {layer: list(bits) for layer, bits in self.layer_bits}, "skip_layers": list(self.skip_layers)}


def make_config(config: Int4KVConfig | None = None, **overrides) -> Int4KVConfig:
    """The given config, or the default one, with overrides."""
    if config is not None and not isinstance(config, Int4KVConfig):
        raise TypeError(f"config is a {type(config).__name__}; accepted: Int4KVConfig, None")
    return (config or Int4KVConfig()).with_overrides(**overrides)


def text_config(model_config):
    """The decoder's part of a model config (a multimodal model has several)."""
    return model_config.get_text_config(decoder=True)


def layer_windows(model_config) -> list:
    """Per layer: its sliding window, or None for full attention. Other layer types raise ValueError."""
    config = text_config(model_config)
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        used = window is not None and getattr(config, "use_sliding_window", True)
        types = ["sliding_attention" if used else "full_attention"] * config.num_hidden_layers
    for name in set(types):
        _check("layer_types", name, "'full_attention', 'sliding_attention'", name in ("full_attention", "sliding_attention"))
    return [window if name == "sliding_attention" else None for name in types]


def head_dim_of(model_config) -> int:
    """Channels of one head."""
    config = text_config(model_config)
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def kv_heads_of(model_config) -> int:
    """Key/value heads of one layer."""
    config = text_config(model_config)
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def is_floating(x: torch.Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float16, torch.bfloat16)
