"""A file that appears whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def replacing(file) -> Iterator[Path]:
    """A path to write to; what is there when the block ends takes the file's place. Whenever it stops, there is the old file or the new one.

    That path is in a folder .NAME.saving beside the file, on which a lock is held: another process that writes the file waits. One that
    is killed leaves the folder behind, and the next one cleans it. Raises OSError, which names the file, when there is no room or no folder.
    """
    file = Path(file)
    try:
        with _own_folder(file.with_name(f".{file.name}.saving")) as folder:
            temporary = folder / file.name
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors puts a file of its own there, which is for its owner's eyes only
            _flush(temporary)
            os.replace(temporary, file)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{file} could not be written ({error}); what was there before is as it was") from error
    _flush(file.parent)


@contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that no other process uses meanwhile; it is gone afterwards."""
    descriptor = _locked(folder)
    try:
        for left in folder.iterdir():
            left.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave the lock to a process forked meanwhile
        os.close(descriptor)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock until it is closed, or its process ends."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # whoever held it has just removed it
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists() and os.path.samestat(os.stat(folder), os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
