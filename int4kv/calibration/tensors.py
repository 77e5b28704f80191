"""What a calibration found, and a folder to keep it in: int4kv.json (every field of the config) and int4kv.safetensors (the tensors)."""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..config import Int4KVConfig, head_dim_of, kv_heads_of, layer_windows
from ..replacing import replacing

JSON, TENSORS = "int4kv.json", "int4kv.safetensors"
FORMAT, VERSION = "int4kv config", 1


@dataclass(frozen=True, eq=False)
class LayerCalibration:
    """One layer's tensors, float32, or None for what was not asked for.

    Centres and lambdas are [num_key_value_heads, head_dim], rotations [num_key_value_heads, head_dim, head_dim].
    """

    k_centre: torch.Tensor | None = None
    v_centre: torch.Tensor | None = None
    k_lambda: torch.Tensor | None = None
    v_lambda: torch.Tensor | None = None
    k_rotation: torch.Tensor | None = None
    v_rotation: torch.Tensor | None = None

    def tensors(self) -> dict:
        """Those there are, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def of_heads(self, held: slice | None) -> "LayerCalibration":
        """The same of some key/value heads; None for all."""
        return self if held is None else LayerCalibration(**{name: tensor[held] for name, tensor in self.tensors().items()})


@dataclass(frozen=True, eq=False)
class Calibration:
    """The tensors of every layer, and the shape of the model that they were measured on."""

    layers: tuple
    num_key_value_heads: int
    head_dim: int

    def __post_init__(self):
        for i, layer in enumerate(self.layers):
            for name, tensor in layer.tensors().items():
                accepted = [self.num_key_value_heads, *[self.head_dim] * (2 if name.endswith("rotation") else 1)]
                if list(tensor.shape) != accepted or tensor.dtype != torch.float32:
                    raise ValueError(f"{name} of layer {i} is {tensor.dtype} {list(tensor.shape)}; accepted: torch.float32 {accepted}")

    @property
    def model_shape(self) -> dict:
        return {"num_hidden_layers": len(self.layers), "num_key_value_heads": self.num_key_value_heads, "head_dim": self.head_dim}

    def check_model(self, model_config) -> None:
        """Raise ValueError when it was measured on a model of another shape."""
        theirs = (len(layer_windows(model_config)), kv_heads_of(model_config), head_dim_of(model_config))
        for (name, mine), its in zip(self.model_shape.items(), theirs):
            if mine != its:
                raise ValueError(f"calibration was measured on a model with {name} {mine}; this model has {its}")


def save_config(config: Int4KVConfig, folder) -> None:
    """Write a config into a folder, which is made if need be. Each file appears whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = {"format": FORMAT, "version": VERSION, "model": None, "tensors_sha256": None, "config": config.to_dict()}
    if config.calibration is not None:
        named = {f"layers.{i}.{name}": tensor.cpu().contiguous()
                 for i, layer in enumerate(config.calibration.layers) for name, tensor in layer.tensors().items()}
        packed = save(named, metadata={"format": FORMAT})
        found |= {"model": config.calibration.model_shape, "tensors_sha256": hashlib.sha256(packed).hexdigest()}
        with replacing(folder / TENSORS) as temporary:
            temporary.write_bytes(packed)
    with replacing(folder / JSON) as temporary:
        temporary.write_text(json.dumps(found, indent=2))


def load_config(folder) -> Int4KVConfig:
    """Read what save_config wrote. Raises ValueError that names the file and what is wrong with it."""
    path = Path(folder) / JSON
    found = _read_json(path)
    values = dict(found["config"])
    unknown = sorted(set(values) ^ {f.name for f in fields(Int4KVConfig) if f.name != "calibration"})
    if unknown:
        raise ValueError(f"{path} has or lacks the fields {unknown}; accepted: every field of Int4KVConfig, and no other")
    values["layer_bits"] = {int(layer): tuple(bits) for layer, bits in values["layer_bits"].items()}
    return Int4KVConfig(**values, calibration=_read_calibration(found, Path(folder) / TENSORS))


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; accepted: a folder that Int4KVConfig.save wrote") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); accepted: what Int4KVConfig.save wrote") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} is not a config of int4kv; accepted: what Int4KVConfig.save wrote")
    if found.get("version") != VERSION:
        raise ValueError(f"{path} has version {found.get('version')!r}; accepted: {VERSION}")
    missing = {"model", "tensors_sha256", "config"} - set(found)
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}; accepted: what Int4KVConfig.save wrote")
    return found


def _read_calibration(found: dict, path: Path) -> Calibration | None:
    if found["model"] is None:
        return None
    tensors = _read_tensors(path, found["tensors_sha256"])
    shape = found["model"]
    layers = [{} for _ in range(shape["num_hidden_layers"])]
    for key, tensor in tensors.items():
        _, layer, name = key.split(".")
        layers[int(layer)][name] = tensor
    return Calibration(tuple(LayerCalibration(**layer) for layer in layers), shape["num_key_value_heads"], shape["head_dim"])


def _read_tensors(path: Path, sha256: str) -> dict:
    try:
        packed = path.read_bytes()
        if hashlib.sha256(packed).hexdigest() == sha256:
            return load(packed)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; accepted: the file that was saved with {JSON}") from None
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); accepted: the file that was saved with {JSON}") from None
    raise ValueError(f"{path} is not the file that was saved with {JSON}: its SHA-256 differs")
