"""Progress bars on a terminal, for what takes a while."""

from contextlib import contextmanager

from rich.progress import Progress


@contextmanager
def bars(shown: bool):
    """bars(True) as bar: bar(name, total) -> a function that advances a bar of its own by one. Not shown, it does nothing."""
    with Progress(disable=not shown, transient=True) as display:

        def bar(name: str, total: int):
            task = display.add_task(name, total=total)
            return lambda: display.advance(task)

        yield bar
