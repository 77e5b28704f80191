"""A safetensors file that appears whole or not at all, with a text and a checksum over both in its metadata."""

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..replacing import replacing

FORMAT, VERSION = "int4kv prompt cache", "1"
ACCEPTED = "a whole file that int4kv.save_cache wrote"


def write(file, text: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write a file beside the old one, then put it in its place (replacing.py).

    tensors: contiguous, on the CPU. Raises OSError, which names the file, when there is no room or no folder.
    """
    metadata = {"format": FORMAT, "version": VERSION, "identity": text, "sha256": checksum(text, tensors)}
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read(file) -> tuple[str, dict[str, torch.Tensor]]:
    """(text, tensors) of what write() wrote. The tensors are backed by the file: copy what is to be kept.

    Raises FileNotFoundError, or ValueError for a file that is cut off, altered, of another version or of another kind.
    """
    while True:
        before = _which(file)
        try:
            return _read(file)
        except ValueError:
            if _which(file) == before:  # else a writer put another in its place, and the library opens a file for every tensor
                raise


def _which(file) -> tuple:
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} {'is not a file' if Path(file).exists() else 'does not exist'}; accepted: {ACCEPTED}")
    found = os.stat(file)
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(file):
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}); accepted: {ACCEPTED}") from None
    for name, expected in (("format", FORMAT), ("version", VERSION)):
        if metadata.get(name) != expected:
            raise ValueError(f"{file} has {name} {metadata.get(name)!r}; accepted: {expected!r}")
    if "identity" not in metadata or metadata.get("sha256") != checksum(metadata["identity"], tensors):
        raise ValueError(f"{file} was altered: its SHA-256 differs; accepted: {ACCEPTED}")
    return metadata["identity"], tensors


def checksum(text: str, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the text and of every tensor's name, dtype, shape and bytes."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        found.update(f"\n{name} {tensors[name].dtype} {list(tensors[name].shape)}\n".encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
