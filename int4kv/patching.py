"""int4kv.patch(model): the attention implementation, and a cache made wherever the model would make its own."""

import inspect
import weakref
from contextlib import contextmanager
from functools import partial

import torch
import transformers
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.utils import logging

from . import ops
from .attention import NAME
from .batching import init_continuous_batching
from .cache import Int4Cache
from .compiling import EagerForward, compiled_call
from .config import Int4KVConfig, head_dim_of, layer_windows, make_config, pair, text_config
from .naming import CACHE, check_name, given_cache
from .paging import Int4PagedCache
from .static import Int4StaticCache
from .tensor_parallel import check_heads, held_heads, hold_whole_heads

OURS_TO_REPLACE = (None, "dynamic", "hybrid")  # cache_implementation values that mean "the default"
STATIC = "static"
LONGEST = "_previous_max_cache_length"  # transformers' name for it: the next static cache is as long, so that its graph fits
TOO_NEW = (5, 25)  # transformers: minor versions rename what models are given, as 5.24 did
PREALLOCATE = 65536  # tokens; a longer max_length is taken as a limit, not as a plan

logger = logging.get_logger(__name__)
_last_cache = weakref.WeakKeyDictionary()  # model -> weak reference to the cache it used last


class Patch:
    """What patch() left on a model: the config, what was there before, and the hooks to remove."""

    def __init__(self, config, previous, hooks, heads):
        self.config, self.previous, self.hooks, self.heads = config, previous, hooks, heads
        self.eager = EagerForward()


def patch(model, config: Int4KVConfig | None = None, **overrides):
    """Make a transformers decoder use the int4 cache in generate() and forward(). Returns the model.

    config: an Int4KVConfig, or None for the default; fields can be given as overrides: patch(model, group_size=64).
    Patching again replaces the config. Raises ValueError, naming the model and the reason, when it cannot work, and ImportError for a
    transformers that is too new.
    """
    config = make_config(config, **overrides)
    check_transformers(transformers.__version__)
    check_supported(model)
    Int4Cache(model.config, config)  # refuses what does not fit this model before anything is changed
    for device in devices_of(model):
        ops.check_device("model", device)
    check_heads(model)
    if is_patched(model):
        unpatch(model)
    hold_whole_heads(model)
    _prepare_kernels(model, config)
    previous = text_config(model.config)._attn_implementation
    set_attention(model, NAME)
    model._prepare_cache_for_generation = partial(_prepare_cache, model)  # unlike a bound method it can be pickled
    model.get_compiled_call = partial(compiled_call, model)
    model.init_continuous_batching = partial(init_continuous_batching, model)
    hooks = (model.register_forward_pre_hook(_before_forward, with_kwargs=True),
             model.register_forward_hook(_after_forward, always_call=True))
    model._int4kv = Patch(config, previous, hooks, held_heads(model))
    return model


def _prepare_kernels(model, config) -> None:
    """Kernels that are compiled for a device are compiled now, not at the first token."""
    head_dim = head_dim_of(text_config(model.config))
    layers = range(len(layer_windows(model.config)))
    used = {pair(config.for_layer(i, len(layers)).bits) for i in layers}
    for device in devices_of(model):
        for k_bits, v_bits in used:
            ops.prepare(device, [head_dim], k_bits, v_bits, config.codebook)


def devices_of(model) -> set:
    """Every torch.device that the model's parameters are on."""
    return {parameter.device for parameter in model.parameters()}


def unpatch(model):
    """Undo patch(). Returns the model; one that is not patched raises ValueError."""
    if not is_patched(model):
        raise ValueError(f"model is a {type(model).__name__} that is not patched; accepted: one that int4kv.patch() was called on")
    left = model.__dict__.pop("_int4kv")
    for hook in left.hooks:
        hook.remove()
    for name in ("_prepare_cache_for_generation", "get_compiled_call", "init_continuous_batching"):
        model.__dict__.pop(name, None)
    set_attention(model, left.previous)
    return model


def is_patched(model) -> bool:
    """True between patch(model) and unpatch(model)."""
    return "_int4kv" in model.__dict__


@contextmanager
def patched(model, config: Int4KVConfig | None = None, **overrides):
    """with int4kv.patched(model): ... - patched inside, as it was before afterwards."""
    before = model._int4kv.config if is_patched(model) else None
    try:
        yield patch(model, config, **overrides)
    finally:
        if before is not None:
            patch(model, before)
        elif is_patched(model):
            unpatch(model)


def check_transformers(version: str) -> None:
    """Raise ImportError for a transformers that int4kv does not know yet."""
    if tuple(map(int, version.split(".")[:2])) >= TOO_NEW:
        raise ImportError(f"transformers is {version}; accepted are 4.57 to 5.24, and newer ones are not known yet; "
                          "pip install 'transformers<5.25'")


def check_supported(model) -> None:
    """Raise ValueError, naming the model and the reason, for one whose attention int4kv cannot serve."""
    reason = _unsupported_reason(model)
    if reason:
        raise ValueError(f"model is a {type(model).__name__} ({reason}); accepted: decoder-only models with standard attention "
                         "behind transformers' attention interface, such as Gemma-3 and Qwen2.5")


def _unsupported_reason(model) -> str | None:
    if not hasattr(model, "config") or not hasattr(model, "set_attn_implementation"):
        return "not a transformers model"
    if getattr(model.config, "is_encoder_decoder", False):
        return "an encoder-decoder"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not go through the attention interface"
    if not hasattr(model, "_prepare_cache_for_generation"):
        return "it has no generate(); patch the model with a language-model head"
    return _unsupported_shape(text_config(model.config))


def _unsupported_shape(config) -> str | None:
    if getattr(config, "num_kv_shared_layers", 0):
        return "its layers share keys and values"
    if getattr(config, "kv_lora_rank", None):
        return "multi-head latent attention"
    if config.model_type.startswith("gpt_oss"):
        return "attention sinks"
    try:
        layer_windows(config)
    except ValueError as error:
        return str(error)
    head_dim = head_dim_of(config)
    return None if head_dim % 32 == 0 and head_dim <= 256 else f"head_dim {head_dim}; accepted: multiples of 32 up to 256"


def last_cache(model):
    """The cache a patched model used last, while it is alive."""
    reference = _last_cache.get(model)
    return reference() if reference is not None else None


def set_attention(model, name) -> None:
    """Make the decoder, not a vision tower beside it, use an attention implementation."""
    config = model.config
    text = text_config(config)
    if text is config:
        return model.set_attn_implementation(name)
    part = next(key for key in config.sub_configs if getattr(config, key) is text)
    model.set_attn_implementation({part: name})  # a plain string would switch the vision tower too


def _prepare_cache(model, generation_config, model_kwargs, *args, **kwargs):
    ours = generation_config.cache_implementation in (*OURS_TO_REPLACE, STATIC) and generation_config.use_cache is not False
    if given_cache(model_kwargs) is not None or not ours:
        type(model)._prepare_cache_for_generation(model, generation_config, model_kwargs, *args, **kwargs)
    else:
        model_kwargs[CACHE] = _new_cache(model, generation_config, *_bind(args, kwargs))
    cache = given_cache(model_kwargs)
    if isinstance(cache, Int4StaticCache):  # its prompts come with masks of four dimensions, which do not say what is padding
        cache.note_padding(model_kwargs.get("attention_mask"))


def _new_cache(model, generation_config, mode, _, length):
    if generation_config.cache_implementation == STATIC:
        length = max(length, getattr(generation_config, "max_cache_len", None) or 0, getattr(model, LONGEST, 0))
        setattr(model, LONGEST, length)
        return Int4StaticCache(model.config, length, model._int4kv.config)
    cache = Int4Cache(model.config, model._int4kv.config).expect(min(length, PREALLOCATE))
    if "assisted" in str(mode).lower() or getattr(generation_config, "is_assistant", False):
        cache.activate_past_recording()
    return cache


def _bind(args, kwargs):
    names = ("generation_mode", "batch_size", "max_cache_length")
    given = dict(zip(names, args)) | kwargs
    return [given.get(name) for name in names]


def _before_forward(model, args, kwargs):
    """Forward pre-hook: the cache, and whether this call may be compiled. In a graph both have been seen to."""
    if torch.compiler.is_compiling() and isinstance(given_cache(kwargs), Int4StaticCache):
        return args, kwargs
    kwargs = _named(model, args, kwargs)
    _give_cache(model, kwargs)
    model._int4kv.eager.begin(kwargs)
    return (), kwargs


def _after_forward(model, args, output):
    if not torch.compiler.is_compiling():
        model._int4kv.eager.end()


def _give_cache(model, kwargs):
    """A cache for calls that bring none, and the padding mask for a cache that is still empty."""
    if isinstance(kwargs.get("cache"), PagedAttentionCache):  # continuous batching: block tables say who sees what, not a mask
        kwargs["attention_mask"] = torch.empty(1, 1, 0, 0, device=kwargs["input_ids"].device)
        return
    check_name(kwargs)
    cache = given_cache(kwargs)
    if cache is None and _wants_cache(model, kwargs):
        cache = kwargs[CACHE] = Int4Cache(model.config, model._int4kv.config)
    if isinstance(cache, Int4PagedCache):
        cache.check_model(model.config)
        cache.note_padding(kwargs.get("attention_mask"))
    elif isinstance(cache, Int4Cache):
        if cache.get_seq_length() == 0:
            cache.check_model(model.config)
            cache.hold_heads(model._int4kv.heads)
            _note_padding(cache, kwargs.get("attention_mask"))
        _last_cache[model] = weakref.ref(cache)
    elif cache is not None:
        logger.warning_once(f"int4kv: {CACHE} is a {type(cache).__name__}, which is used as it is: nothing is quantised")


def _note_padding(cache, attention_mask):
    if attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2):
        cache.note_padding(attention_mask)


def _named(model, args, kwargs):
    return dict(zip(inspect.signature(model.forward).parameters, args)) | kwargs if args else kwargs


def _wants_cache(model, kwargs):
    wanted = kwargs.get("use_cache")
    return not model.training and (text_config(model.config).use_cache if wanted is None else wanted)
