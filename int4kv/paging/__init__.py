"""Sequences in pages of a fixed size: shared by forks, moved by their block tables, never copied as a whole."""

from .cache import Int4PagedCache
from .pages import OutOfPages
from .pool import PagePool
from .rings import OutOfRings

__all__ = ["Int4PagedCache", "OutOfPages", "OutOfRings", "PagePool"]
