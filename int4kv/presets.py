"""Recipes by name: int4kv.preset("saw-int4"). Those of other systems are as they published them: no centre, no exact newest tokens."""

from .config import Int4KVConfig

_AS_PUBLISHED = dict(centre=None, recent=0)
PRESETS = {
    "default": dict(),
    # arXiv 2605.05699: sign-randomised Fourier transform, abs-max int4, one scale per vector. Its lambda needs int4kv.calibrate.
    "bergach": dict(rotation="srft", codebook="absmax", **_AS_PUBLISHED),
    # arXiv 2604.19157: keys rotated in blocks of 128, values as they are, minimum and scale per vector.
    "saw-int4": dict(rotation=("sylvester", None), hadamard_block=128, codebook="asymmetric", **_AS_PUBLISHED),
    # arXiv 2504.19874 as turboquant-mlx has it: Lloyd-Max levels after a randomised Hadamard rotation.
    "turboquant-3bit": dict(bits=3, **_AS_PUBLISHED),
    "turboquant-4bit": dict(bits=4, **_AS_PUBLISHED),
    "k8v4": dict(bits=(8, 4)),
    "k5v4": dict(bits=(5, 4)),
    "k5v3": dict(bits=(5, 3)),  # the bytes of the default: keys are what the loss comes from
    "3bit": dict(bits=3),
}


def preset(name: str, **overrides) -> Int4KVConfig:
    """The Int4KVConfig of that name, with fields overridden. An unknown name raises ValueError and lists those there are."""
    if name not in PRESETS:
        raise ValueError(f"name is {name!r}; accepted: {', '.join(PRESETS)}")
    return Int4KVConfig(**(PRESETS[name] | overrides))
