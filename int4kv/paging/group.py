"""A group: the layers that see equally far. They share pages, and block tables."""

from collections import Counter
from dataclasses import dataclass, field

import torch

from .layout import PageLayout
from .pages import OutOfPages, Pages


@dataclass
class Table:
    """A sequence's pages in one group: pages[i] holds tokens (first + i) * page_size and on. Pages before `first` slid out of sight.

    start: tokens before it were never stored, though a page may have room for them.
    """

    first: int = 0
    pages: list[int] = field(default_factory=list)
    start: int = 0

    def by_token(self) -> list[int]:
        """As a block table: entry t // page_size for token t; 0 for pages that nobody looks at any more."""
        return [0] * self.first + self.pages


@dataclass
class Plan:
    """What an append changes in one table: pages that slide out, pages to copy because others own them too, pages to add.

    start: the first token that is kept.
    """

    table: Table
    start: int
    first: int
    released: list[int]
    written: list[int]
    added: int


class Group:
    """layers: indices. window: how far they see, None for all. count: pages. rollback: tokens that a crop may take back.

    Its memory is one tensor, uint8 [count, bytes of a page of all its layers].
    """

    def __init__(self, layers: list[int], window: int | None, layout: PageLayout, count: int, rollback: int, device):
        self.layers, self.window, self.page_size, self.rollback = layers, window, layout.page_size, rollback
        self.pages = Pages(count)
        self.memory = torch.zeros(count, layout.nbytes, dtype=torch.uint8, device=device)
        self.copied_bytes = 0

    def seen_from(self, begin: int) -> int:
        """The first token that a query at `begin`, or one after a crop within the rollback, can see."""
        return 0 if self.window is None else max(0, begin - self.window + 1 - self.rollback)

    def plan(self, table: Table, begin: int, end: int, seen_from: int) -> Plan:
        """What it takes to store tokens begin .. end where those from seen_from on are kept."""
        size = self.page_size
        first, behind = max(seen_from // size, table.first), table.first + len(table.pages)
        gone = min(first - table.first, len(table.pages))
        added = max(0, -(-end // size) - max(behind, first)) if end > begin else 0
        written = [i for i in range(begin // size, behind) if i >= first] if end > begin else []
        return Plan(table, seen_from, first, table.pages[:gone], [table.pages[i - table.first] for i in written], added)

    def check_room(self, plans: list[Plan]) -> None:
        """OutOfPages when the plans of all sequences of a step together need more pages than there are."""
        writers, leavers = Counter(p for plan in plans for p in plan.written), Counter(p for plan in plans for p in plan.released)
        copies = sum(n if self.pages.owners[page] > n else n - 1 for page, n in writers.items())
        freed = sum(self.pages.owners[page] == n for page, n in leavers.items())
        needed, there = sum(plan.added for plan in plans) + copies, self.pages.free + freed
        if needed > there:
            kind = "full attention" if self.window is None else f"a sliding window of {self.window} tokens"
            raise OutOfPages(f"{needed} pages of {self.page_size} tokens are needed for layers with {kind} and {there} of {self.pages.count} "
                             "are free; free sequences, add fewer tokens at once, or make a larger pool")

    def carry_out(self, plan: Plan) -> None:
        """Change the table and, before others' pages are written, copy them."""
        table = plan.table
        table.start = table.start if table.pages else plan.start
        self.pages.release(plan.released)
        table.pages = table.pages[len(plan.released) :]
        table.first = plan.first
        for page in plan.written:
            if self.pages.owners[page] > 1:
                table.pages[table.pages.index(page)] = self._own_copy(page)
        table.pages += self.pages.take(plan.added)
        for page in table.pages[len(table.pages) - plan.added :]:
            self.pages.check_writable(page)

    def _own_copy(self, page):
        copy = self.pages.take(1)[0]
        self.memory[copy] = self.memory[page]
        self.pages.release([page])
        self.copied_bytes += self.memory.shape[1]
        return copy

    def share(self, table: Table) -> Table:
        """A second table over the same pages."""
        self.pages.share(table.pages)
        return Table(table.first, list(table.pages), table.start)

    def held_from(self, table: Table, length: int) -> int:
        """The first token that is stored and that a query behind `length` tokens, or one after a crop within the rollback, can see."""
        return max(table.start, table.first * self.page_size, self.seen_from(length))

    def check_crop(self, table: Table, length: int, end: int) -> None:
        """ValueError when tokens that a query at `end` sees have slid out of sight."""
        needed = 0 if self.window is None else max(0, end - self.window + 1)
        if needed < max(table.start, table.first * self.page_size):
            raise ValueError(f"crop to {end} of {length} tokens; a sliding window of {self.window} tokens keeps what crops of up to "
                             f"{self.rollback} tokens need")

    def crop(self, table: Table, end: int) -> None:
        """Give back the pages behind token `end`."""
        kept = max(0, -(-end // self.page_size) - table.first)
        self.pages.release(table.pages[kept:])
        table.pages = table.pages[:kept]
        if not table.pages:
            table.first = table.start = 0

    def release(self, table: Table) -> None:
        """Give back all pages."""
        self.crop(table, 0)
