"""model.generate_batch() of a patched model: transformers' continuous batching over int4 pages."""

import transformers


def init_continuous_batching(model, *args, **kwargs):
    """As transformers' model.init_continuous_batching. NotImplementedError with a transformers whose cache is not made of bytes."""
    try:
        from transformers.generation.continuous_batching import cache_allocators  # noqa: F401
    except ImportError:
        raise NotImplementedError(f"transformers is {transformers.__version__}, whose continuous batching has no cache allocators; "
                                  "continuous batching with int4kv was made for 5.23 and 5.24") from None
    from .manager import init_continuous_batching as start

    return start(model, *args, **kwargs)
