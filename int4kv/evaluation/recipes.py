"""Recipes to compare: presets by name, with fields changed, from a file, or calibrated and saved; "fp" is the model's own cache."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

from transformers.cache_utils import DynamicCache

from ..cache import Int4Cache
from ..config import Int4KVConfig, text_config
from ..patching import patched
from ..presets import PRESETS, preset
from ..reporting import report

FP = "fp"
WORDS = {"none": None, "true": True, "false": False}
CHANGEABLE = tuple(f.name for f in fields(Int4KVConfig) if f.name not in ("prefill", "calibration"))
SEQUENCES = ("skip_layers", "layer_bits")


@dataclass(frozen=True)
class Recipe:
    """A name and what it stands for: an Int4KVConfig, or None for transformers' own cache.

    The config reads with prefill="packed" whatever it was: every key and value beyond a query's exact ones comes from the codes.
    """

    name: str
    config: Int4KVConfig | None

    def __post_init__(self):
        if self.config is not None:
            object.__setattr__(self, "config", self.config.with_overrides(prefill="packed"))

    def new_cache(self, model, length: int):
        """An empty cache for sequences of `length` tokens. Raises ValueError when the recipe does not fit the model."""
        if self.config is None:
            return DynamicCache(config=text_config(model.config))
        return Int4Cache(model.config, self.config).expect(length)

    def applied(self, model):
        """A context in which the model reads this recipe's caches."""
        return nullcontext(model) if self.config is None else patched(model, self.config)

    def bits_per_value(self, model, tokens: int) -> float:
        """Bits of everything held, scales, exact rows and centres too, over the keys and values of so many tokens."""
        return 16.0 if self.config is None else 16 / report(Int4Cache(model.config, self.config), tokens).ratio


def parse_recipes(text: str) -> list[Recipe]:
    """"fp,default,3bit,default:bits=5/4,recent=0" -> recipes; a folder stands for the config that Int4KVConfig.save wrote there.

    A pair (K, V) is written with a slash. Raises ValueError for an unknown preset, field or value, naming it and what is accepted.
    """
    named = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if named and "=" in part and ":" not in part.split("=")[0]:
            named[-1] += "," + part
        else:
            named.append(part)
    return _distinct([_recipe(one) for one in named])


def read_recipe_file(path) -> list[Recipe]:
    """Recipes of a JSON file {name: {field: value}}; "preset" among the fields says which one they change ("default")."""
    try:
        given = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} could not be read: {error}") from None
    if not isinstance(given, dict) or not all(isinstance(values, dict) for values in given.values()):
        raise ValueError(f"{str(path)!r} is no recipe file; accepted: a JSON object {{name: {{field: value}}}}")
    return _distinct([Recipe(name, _config(name, dict(values))) for name, values in given.items()])


def _recipe(text: str) -> Recipe:
    name, _, changes = text.partition(":")
    if name == FP and not changes:
        return Recipe(FP, None)
    values = {}
    for change in filter(None, changes.split(",")):
        field, _, value = change.partition("=")
        values[field.strip()] = _value(field.strip(), value.strip())
    return Recipe(text, _config(text, values | {"preset": name}))


def _value(field: str, text: str):
    parts = [WORDS.get(part, int(part) if part.lstrip("-").isdigit() else part) for part in text.split("/")]
    return tuple(parts) if len(parts) > 1 or field in SEQUENCES else parts[0]


def _config(name: str, values: dict) -> Int4KVConfig:
    base = values.pop("preset", "default")
    unknown = [field for field in values if field not in CHANGEABLE]
    if unknown:
        raise ValueError(f"{name!r} sets {unknown[0]!r}; accepted: {', '.join(CHANGEABLE)}")
    if "layer_bits" in values:
        values["layer_bits"] = {int(layer): bits for layer, bits in dict(values["layer_bits"]).items()}
    if base not in PRESETS and (Path(base) / "int4kv.json").is_file():
        return Int4KVConfig.load(base).with_overrides(**values)
    if base not in PRESETS:
        raise ValueError(f"{base!r} is no recipe; accepted: {FP}, {', '.join(PRESETS)}, or a folder with int4kv.json")
    return preset(base, **values)


def _distinct(recipes: list[Recipe]) -> list[Recipe]:
    names = [recipe.name for recipe in recipes]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is named twice; accepted: each recipe once")
    return recipes
