"""What models are given their cache as, and give it back as: `cache` from transformers 5.24 on, `past_key_values` before."""

import transformers
from transformers.modeling_outputs import BaseModelOutputWithPast

OLD = "past_key_values"
CACHE = "cache" if hasattr(BaseModelOutputWithPast, "cache") else OLD


def as_argument(cache) -> dict:
    """The cache by its name, for model(ids, **as_argument(cache)) and model.generate."""
    return {CACHE: cache}


def given_cache(arguments: dict):
    """The cache among the arguments of a model, None where there is none; also by the old name, of which transformers itself warns."""
    return arguments.get(CACHE, arguments.get(OLD))


def cache_of(output):
    """The cache in what a model or generate() returned."""
    return getattr(output, CACHE)


def check_name(arguments: dict) -> None:
    """Raise TypeError for a cache by the name of newer versions: it would be taken for an option of attention."""
    if CACHE == OLD and arguments.get("cache") is not None:
        raise TypeError(f"cache is a {type(arguments['cache']).__name__}; accepted by models of transformers {transformers.__version__}: "
                        f"{OLD}, its name before 5.24")
