"""Int4Cache: a transformers Cache whose layers store four bits."""

import torch
from transformers.cache_utils import Cache

from .config import Int4KVConfig, head_dim_of, kv_heads_of, layer_windows, make_config, text_config
from .conversion import fill_from_dynamic, to_dynamic
from .layer import Int4Layer
from .naming import CACHE


def signature(model_config) -> tuple:
    """What a cache and a model must agree on: key/value heads, head_dim and the window of every layer."""
    return kv_heads_of(model_config), head_dim_of(model_config), tuple(layer_windows(model_config))


def check_same_signature(mine: tuple, model_config) -> None:
    """Raise ValueError when a cache with this signature was made for a model of another shape."""
    for name, own, its in zip(("num_key_value_heads", "head_dim", "layers and sliding windows"), mine, signature(model_config)):
        if own != its:
            raise ValueError(f"{CACHE} was made for a model with {name} {own}; this model has {its}")


class Int4Cache(Cache):
    """Holds keys and values of a model with the given config, packed.

    model_config: the model's config (model.config). config: an Int4KVConfig; its fields can be given as overrides.
    Pass it to the model as cache, past_key_values before transformers 5.24; int4kv.patch(model) makes generate and forward create it by
    themselves. Under another attention function than "int4kv" it hands out dense, dequantised tensors.
    """

    layer_class = Int4Layer

    def __init__(self, model_config, config: Int4KVConfig | None = None, **overrides):
        self.config = make_config(config, **overrides)
        self.signature = signature(model_config)
        _, head_dim, windows = self.signature
        if self.config.group_size and head_dim % self.config.group_size:
            raise ValueError(f"group_size is {self.config.group_size}; accepted: divisors of head_dim, {head_dim}")
        self.config.check_layers(len(windows))
        if self.config.calibration is not None:
            self.config.calibration.check_model(model_config)
        text, count = text_config(model_config), len(windows)
        super().__init__(layers=[self.layer_class(self.config, text, window, i, count) for i, window in enumerate(windows)])

    @classmethod
    def from_dynamic(cls, dynamic, model_config, config: Int4KVConfig | None = None, *, attention_mask: torch.Tensor | None = None,
                     **overrides) -> "Int4Cache":
        """An Int4Cache of what a transformers DynamicCache holds, which stays as it is.

        model_config, config, overrides: as above. attention_mask: [batch, tokens], the padding that the DynamicCache was filled with.
        The bytes are those of an Int4Cache that was given the same keys and values, except in sliding layers that have dropped their
        first tokens: there the prompt's centre is made of the oldest tokens left.
        Raises TypeError for another kind of cache and one that offloads, ValueError for one of another model.
        """
        cache = cls(model_config, config, **overrides)
        fill_from_dynamic(cache, dynamic, attention_mask)
        return cache

    def to_dynamic(self):
        """A transformers DynamicCache of the tokens held, dequantised in the model's dtype; sliding layers keep their window."""
        return to_dynamic(self)

    def expect(self, length: int) -> "Int4Cache":
        """Make buffers of this many tokens at once, where the final length is known beforehand. Returns the cache."""
        for layer in self.layers:
            layer.expected_length = length
        return self

    def activate_past_recording(self) -> None:
        """Let crop take back everything since the last crop; transformers has this from 5.16 on."""
        for layer in self.layers:
            layer.activate_past_recording()

    def crop(self, tokens: int) -> None:
        """Take tokens back: negative = how many (as transformers 5.16+ means it), positive = the length to keep."""
        super().crop(int(tokens))  # assisted decoding of some versions has it on the device: one wait, not one a layer

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Sequence i of the batch becomes what sequence beam_idx[i] was: in place, and codes only from where the two differ."""
        super().reorder_cache(torch.as_tensor(beam_idx).cpu())  # read by every layer: one wait for the device, not one a layer

    @property
    def batch_size(self) -> int:
        """Sequences held, -1 before the first update."""
        return getattr(self.layers[0], "batch_size", -1)

    def note_padding(self, attention_mask: torch.Tensor | None) -> None:
        """The 2-dimensional attention mask of the first chunk: padding is left out of the centre."""
        if self.get_seq_length() == 0:
            mask = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
            for layer in self.layers:
                layer.padding = mask

    def check_model(self, model_config) -> None:
        """Raise ValueError when this cache was made for a model of another shape."""
        check_same_signature(self.signature, model_config)

    def hold_heads(self, heads: slice | None) -> None:
        """Which of the model's KV heads come here, where tensor parallelism splits them: what is calibrated per head is cut to these."""
        for layer in self.layers:
            layer.held_heads = heads

    def memory_footprint(self) -> int:
        """Bytes of every tensor held: codes, scales, exact rows and centres of all layers, and the rotations they share."""
        return sum(layer.nbytes for layer in self.layers) + self.rotation_bytes()

    def rotation_bytes(self) -> int:
        """Bytes of all rotations in use, each counted once."""
        used = {}
        for side in (side for layer in self.layers if layer.is_initialized for side in layer.sides):
            used |= {t.data_ptr(): t for t in side.rotation if t is not None}
        return sum(t.numel() * t.element_size() for t in used.values())

    @property
    def nbytes(self) -> int:
        return self.memory_footprint()
