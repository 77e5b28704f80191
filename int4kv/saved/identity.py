"""What a saved cache must agree on with the model, config and tokens that continue it, each under its name."""

import hashlib
import json

import torch

from .. import ops
from ..config import Int4KVConfig, text_config

# Fields of a model's config that change neither keys nor values, or that say again what the weights say.
UNRELATED = frozenset((
    "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label", "initializer_range",
    "label2id", "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "tie_word_embeddings",
    "torch_dtype", "transformers_version", "use_cache"))
LIMITS = ("max_cache_len", "check_finite")  # fields of Int4KVConfig that do not change what is stored
SAMPLES = 256  # values of each parameter that stand for all of it


def describe(model, config: Int4KVConfig) -> dict:
    """{part: {name: value}} for JSON: the packed format, the Int4KVConfig, the model's config and its weights."""
    fields = text_config(model.config).to_dict()
    return _as_json({
        "format": {"version": ops.build_info()["format_version"]},
        "config": config.to_dict() | {"calibration": _calibration_digest(config.calibration)},
        "model": {name: value for name, value in fields.items() if name not in UNRELATED and not name.startswith("_")}
        | {"dtype": str(model.dtype), "weights": weights_digest(model)},
    })


def _as_json(values):
    return json.loads(json.dumps(values, default=str))


def check(file, found: dict, expected: dict) -> None:
    """Raise ValueError, naming the file, the field and both values, where the file's identity is not the expected one."""
    for part, values in expected.items():
        for name in sorted(values.keys() | found[part].keys(), key=lambda name: (name == "weights", name)):
            its, ours = found[part].get(name), values.get(name)
            if its != ours and not (part == "config" and name in LIMITS):
                raise ValueError(f"{file} was saved with {part} {name} {_shown(its)}; accepted here: {_shown(ours)}")


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def weights_digest(model) -> str:
    """SHA-256 of every parameter's name and shape and of up to 512 of its values, evenly spread: training changes all of them."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        found.update(f"\n{name} {list(parameter.shape)}\n".encode())
        if not parameter.is_meta:  # on the disk, where accelerate put it
            values = parameter.detach().reshape(-1)
            found.update(_bytes(values[:: max(1, values.numel() // SAMPLES)]))
    return found.hexdigest()


def tokens_digest(input_ids: torch.Tensor) -> str:
    """SHA-256 of token ids [batch, tokens]."""
    return hashlib.sha256(f"{list(input_ids.shape)}\n".encode() + bytes(_bytes(input_ids.long()))).hexdigest()


def _calibration_digest(calibration) -> str | None:
    if calibration is None:
        return None
    found = hashlib.sha256()
    for i, layer in enumerate(calibration.layers):
        for name, tensor in layer.tensors().items():
            found.update(f"\n{i} {name} {list(tensor.shape)}\n".encode())
            found.update(_bytes(tensor))
    return found.hexdigest()


def _bytes(tensor: torch.Tensor):
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
