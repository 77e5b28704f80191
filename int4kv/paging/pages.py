"""Pages: which pages are free, and how many sequences own each of the others."""


class OutOfPages(RuntimeError):
    """A pool has fewer free pages than are needed. Nothing was changed."""


class Pages:
    """Page numbers 0 .. count - 1, with a count of owners each: 0 is free, 2 and more is shared and must not be written."""

    def __init__(self, count: int):
        self.count = count
        self.owners = [0] * count
        self._free = list(range(count))[::-1]

    @property
    def free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    def take(self, number: int) -> list[int]:
        """So many free pages, now with one owner each. OutOfPages when there are fewer."""
        if number > self.free:
            raise OutOfPages(f"{number} pages are needed and {self.free} of {self.count} are free; free sequences, or make a larger pool")
        taken = [self._free.pop() for _ in range(number)]
        for page in taken:
            self.owners[page] = 1
        return taken

    def share(self, pages: list[int]) -> None:
        """One more owner for each page. ValueError for a page that nobody owns."""
        self._check_owned("shared", pages)
        for page in pages:
            self.owners[page] += 1

    def release(self, pages: list[int]) -> None:
        """One owner fewer for each page; the last one frees it. ValueError for a page that nobody owns: it was freed before."""
        self._check_owned("freed", pages)
        for page in pages:
            self.owners[page] -= 1
            if self.owners[page] == 0:
                self._free.append(page)

    def check_writable(self, page: int) -> None:
        """ValueError unless exactly one sequence owns the page: nobody else's tokens are overwritten."""
        self._check_owned("written", [page])
        if self.owners[page] > 1:
            raise ValueError(f"page {page} is written while {self.owners[page]} sequences own it; accepted: one owner (it is copied first)")

    def _check_owned(self, what, pages):
        for page in pages:
            if not 0 <= page < self.count:
                raise ValueError(f"page {page} is {what}; accepted: 0 .. {self.count - 1}")
            if self.owners[page] == 0:
                raise ValueError(f"page {page} is {what} and nobody owns it; accepted: a page that a sequence owns")
