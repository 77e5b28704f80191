"""A cache in a file, so that a long prompt is read once: what a layer holds as tensors (layers, pages), what the file must agree on with
the model that continues it (identity), and a file that is whole or an error (container)."""

from .prompt import load_cache, save_cache

__all__ = ["load_cache", "save_cache"]
