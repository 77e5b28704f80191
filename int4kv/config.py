"""What to quantise and how: one frozen dataclass, checked when it is made."""

from dataclasses import asdict, dataclass, field, replace

import torch

EXACT_BITS = 16
ROLLBACK = 32  # tokens that a crop may always take back without losing exact rows or a sliding layer's window


def _check(name: str, value, accepted: str, ok: bool) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}; accepted: {accepted}")


def _is_count(value, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True)
class Int4KVConfig:
    """How an Int4Cache stores keys and values.

    bits: 4, or 16 to store rows in the model's own dtype through the same path (for tests and skipped layers).
    group_size: channels that share one fp16 scale: 32, 64, 128, or None for the whole head_dim.
    rotation: "hadamard" (randomised, fixed signs) or None.
    centre: a constant subtracted from every key of a sequence, exact under softmax: "prompt" (mean of its first
        centre_tokens real keys, padding left out; of fewer while there are fewer), "calibrated" (centres, from
        int4kv.calibrate) or None.
    recent: the newest tokens that every query reads exactly, beside their codes; 0 turns the ring off.
    prefill: "exact" (a chunk attends to its own keys as they are) or "packed" (every key and value through the codes,
        as decoding token by token would; for evaluation).
    skip_layers: layer indices kept in the model's dtype.
    max_cache_len: tokens that full-attention layers hold at most, preallocated; None grows by doubling.
    check_finite: raise ValueError on NaN or infinity in new keys or values, instead of storing NaN. Costs a sync.
    """

    bits: int = 4
    group_size: int | None = None
    rotation: str | None = "hadamard"
    centre: str | None = "prompt"
    centre_tokens: int = 32
    centres: tuple | None = field(default=None, repr=False, compare=False)
    recent: int = 32
    prefill: str = "exact"
    skip_layers: tuple = ()
    max_cache_len: int | None = None
    check_finite: bool = False

    def __post_init__(self):
        _check("bits", self.bits, "4, or 16 (exact)", self.bits in (4, EXACT_BITS))
        _check("group_size", self.group_size, "None (head_dim), 32, 64, 128", self.group_size in (None, 32, 64, 128))
        _check("rotation", self.rotation, "'hadamard', None", self.rotation in ("hadamard", None))
        _check("centre", self.centre, "'prompt', 'calibrated', None", self.centre in ("prompt", "calibrated", None))
        _check("centre_tokens", self.centre_tokens, "1 or more", _is_count(self.centre_tokens, 1))
        _check("centres", self.centres, "the result of int4kv.calibrate, with centre='calibrated'",
               (self.centres is not None) == (self.centre == "calibrated"))
        _check("recent", self.recent, "0 or more", _is_count(self.recent, 0))
        _check("prefill", self.prefill, "'exact', 'packed'", self.prefill in ("exact", "packed"))
        _check("max_cache_len", self.max_cache_len, "None, 1 or more",
               self.max_cache_len is None or _is_count(self.max_cache_len, 1))
        object.__setattr__(self, "skip_layers", tuple(self.skip_layers))
        _check("skip_layers", self.skip_layers, "layer indices, 0 or more", all(_is_count(i, 0) for i in self.skip_layers))

    def with_overrides(self, **overrides) -> "Int4KVConfig":
        """A copy with some fields changed; an unknown name raises TypeError."""
        return replace(self, **overrides) if overrides else self

    def for_layer(self, layer_idx: int) -> "Int4KVConfig":
        """What one layer does: skipped layers store their rows as they are."""
        if layer_idx not in self.skip_layers:
            return self
        return replace(self, bits=EXACT_BITS, rotation=None, centre=None, centres=None, recent=0)

    def to_dict(self) -> dict:
        """Plain values, without the calibrated centres."""
        values = asdict(replace(self, centre=None, centres=None))
        del values["centres"]
        return values | {"centre": self.centre, "skip_layers": list(self.skip_layers)}


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
