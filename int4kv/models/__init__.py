"""Two small trained models that ship with the package, for the demonstration and the tests."""

from pathlib import Path

NAMES = ("tiny-qwen2", "tiny-gemma3")
HELDOUT = Path(__file__).parent / "heldout.txt"


def path(name: str) -> Path:
    """The folder of a bundled model."""
    if name not in NAMES:
        raise ValueError(f"name is {name!r}; accepted: {', '.join(NAMES)}")
    return Path(__file__).parent / name


def load(name_or_path, device: str = "cpu", dtype="auto"):
    """(model, tokenizer) of a bundled name, a local folder or a hub id, in evaluation mode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = path(name_or_path) if name_or_path in NAMES else name_or_path
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    return model.eval().to(device), tokenizer
