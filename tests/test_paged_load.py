"""Pages that are shared, copied, freed and used again under load: every result bit for bit that of a contiguous cache."""

import torch
from devices import DEVICE, on_device
from pages import int32, random, side

from int4kv import ops


class Serving:
    """Sequences that come, grow, fork and go over one pool of reference-counted pages, beside a contiguous cache of each."""

    def __init__(self, page_size, pages):
        self.page_size, self.free, self.users = page_size, list(range(pages)), [0] * pages
        self.sides = [t for _ in "kv" for t in side(pages, page_size, 2, 64)]
        self.sequences = []

    def take(self):
        page = self.free.pop(len(self.free) // 2)
        self.users[page] = 1
        return page

    def release(self, page):
        self.users[page] -= 1
        if self.users[page] == 0:
            self.free.append(page)

    def append(self, sequence, count, seed):
        """New tokens; a last page that another sequence reads as well is copied before it is written to."""
        length, k, v = sequence["length"], random(count, 2, 64, seed=seed), random(count, 2, 64, seed=seed + 1)
        if length % self.page_size and self.users[sequence["pages"][-1]] > 1:
            shared, sequence["pages"][-1] = sequence["pages"][-1], self.take()
            for stored in self.sides:
                stored[sequence["pages"][-1]] = stored[shared]
            self.release(shared)
        while len(sequence["pages"]) * self.page_size < length + count:
            sequence["pages"].append(self.take())
        slots = [sequence["pages"][t // self.page_size] * self.page_size + t % self.page_size for t in range(length, length + count)]
        ops.quantize_paged(k, v, *self.sides, torch.tensor(slots, device=DEVICE), codebook="lloyd")
        ops.quantize_kv(k.transpose(0, 1)[None], v.transpose(0, 1)[None], *sequence["cache"], length, codebook="lloyd")
        sequence["length"] += count

    def start(self, seed):
        cache = [t for _ in "kv" for t in (torch.zeros(1, 2, 200, 32, dtype=torch.uint8), torch.zeros(1, 2, 200, 1, dtype=torch.float16))]
        self.sequences.append(dict(length=0, pages=[], cache=on_device(cache)))
        self.append(self.sequences[-1], 3, seed)

    def fork(self, sequence):
        for page in sequence["pages"]:
            self.users[page] += 1
        self.sequences.append(dict(length=sequence["length"], pages=list(sequence["pages"]), cache=[t.clone() for t in sequence["cache"]]))

    def finish(self, sequence):
        for page in sequence["pages"]:
            self.release(page)
        self.sequences = [s for s in self.sequences if s is not sequence]

    def check(self, seed):
        counts = [1 + (seed + i) % 3 for i in range(len(self.sequences))]
        starts, width = [sum(counts[:i]) for i in range(len(counts) + 1)], max(len(s["pages"]) for s in self.sequences)
        q = random(sum(counts), 8, 64, seed=seed)  # groups of 4 take the same kernel on a GPU, however many queries there are
        table = int32([s["pages"] + [-1] * (width - len(s["pages"])) for s in self.sequences])
        lengths = int32([s["length"] for s in self.sequences])
        found = ops.attend_paged(q, *self.sides, table, lengths, int32(starts), 3, 0.125, codebook="lloyd").split(counts)
        for rows, own, s in zip(q.split(counts), found, self.sequences):
            alone = ops.attend(rows.transpose(0, 1)[None], *s["cache"], 0, s["length"], 0.125, codebook="lloyd")
            assert torch.equal(own, alone[0].transpose(0, 1))


def operate(serving, kind, which, seed):
    """One operation: 0 start, 1 finish, 2 fork, else append."""
    room = len(serving.sequences) < 6
    if not serving.sequences or kind == 0 and room:
        return serving.start(seed)
    sequence = serving.sequences[which % len(serving.sequences)]
    if kind == 1 or sequence["length"] > 80:
        serving.finish(sequence)
    elif kind == 2 and room:
        serving.fork(sequence)
    else:
        serving.append(sequence, [1, 1, 3, 8, 21][kind % 5], seed)


def test_pages_move_under_load():
    """Seeded operations; after every few all sequences are read in one call, and in the end every page is free again."""
    serving, rng = Serving(page_size=8, pages=90), torch.Generator().manual_seed(0)
    for step in range(120):
        kind, which = (int(torch.randint(0, 10, (), generator=rng)) for _ in range(2))
        operate(serving, kind, which, seed=1000 + 2 * step)
        if step % 4 == 3 and serving.sequences:
            serving.check(seed=step)
    for sequence in list(serving.sequences):
        serving.finish(sequence)
    assert sorted(serving.free) == list(range(90))
