"""Sequences of random keys and values twice: in shuffled pages through quantize_paged, and each alone in a cache through quantize_kv."""

import torch
from devices import DEVICE, on_device
from test_format import buffers

from int4kv import ops
from int4kv.rotation import hadamard_signs


def pool(pages, page_size, heads, numbers, dtype, head_major=True):
    """A side of the pages, full of what must not be read: NaN, and codes that no row has."""
    stored = torch.full((pages, heads, page_size, numbers), 0xAB if dtype == torch.uint8 else float("nan"), dtype=dtype, device=DEVICE)
    return stored.transpose(1, 2) if head_major else stored.transpose(1, 2).contiguous()


def side(pages, page_size, heads, head_dim, bits=4, codebook="lloyd", group_size=None, head_major=True):
    """Codes and scales; 32 bits are float32 rows as they are."""
    numbers = head_dim // (group_size or head_dim) * (2 if codebook == "asymmetric" else 1) if bits < 16 else 0
    codes = (head_dim * bits // 8, torch.uint8) if bits < 16 else (head_dim, torch.float32)
    return [pool(pages, page_size, heads, *codes, head_major), pool(pages, page_size, heads, numbers, torch.float16, head_major)]


def random(*shape, seed):
    return on_device(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def int32(values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


class Paged:
    """`lengths` tokens of each sequence; every one has its pages, in any order, and a ring of `rows` exact rows."""

    def __init__(self, lengths, heads=2, head_dim=64, page_size=16, rows=0, bits=(4, 4), codebook="lloyd", group_size=None,
                 head_major=True, centred=False, seed=0):
        self.lengths, self.page_size, self.rows = list(lengths), page_size, rows
        self.heads, self.head_dim, self.bits, self.group_size = heads, head_dim, bits, group_size
        self.generator = torch.Generator().manual_seed(seed)
        needed = [-(-n // page_size) for n in self.lengths]
        order = iter(torch.randperm(sum(needed) + 3, generator=self.generator).tolist())
        self.pages = [[next(order) for _ in range(n)] for n in needed]
        shape = (sum(needed) + 3, page_size, heads, head_dim)
        self.sides = [t for b in bits for t in side(*shape, b, codebook, group_size, head_major)]
        signs = hadamard_signs(head_dim, DEVICE)
        self.rotations = dict(k_rotation=signs, v_rotation=signs)
        self.centres = dict(v_centre=random(1, heads, head_dim, seed=seed + 1)) if centred else {}
        self.codebook = codebook
        self.rings = torch.randperm(len(self.lengths), generator=self.generator).tolist()
        self.recents = {n: pool(len(self.lengths), rows, heads, head_dim, torch.float16) for n in ("k_recent", "v_recent")} if rows else {}
        self.tokens = [tuple(random(n, heads, head_dim, seed=seed + 100 * s + i) for i in (7, 8)) for s, n in enumerate(self.lengths)]
        self.write(range(len(self.lengths)))
        self.alone = [self._alone(s) for s in range(len(self.lengths))]

    def slots(self, s):
        return [self.pages[s][t // self.page_size] * self.page_size + t % self.page_size for t in range(self.lengths[s])]

    def ring_slots(self, s):
        n = self.lengths[s]
        return [self.rings[s] * self.rows + t % self.rows if t >= n - self.rows else -1 for t in range(n)]

    def write(self, sequences):
        """All tokens of these sequences in one call."""
        k, v = (torch.cat([self.tokens[s][i] for s in sequences]) for i in (0, 1))
        slots = torch.tensor([slot for s in sequences for slot in self.slots(s)], device=DEVICE)
        newest = [slot for s in sequences for slot in self.ring_slots(s)] if self.rows else []
        recent = dict(recent_slots=torch.tensor(newest, device=DEVICE)) | self.recents if self.rows else {}
        ops.quantize_paged(k, v, *self.sides, slots, **self.rotations, **self.centres, **recent, codebook=self.codebook)

    def _alone(self, s):
        n, (k, v) = self.lengths[s], (x.transpose(0, 1)[None] for x in self.tokens[s])
        made = [buffers(1, self.heads, max(n, 1), self.head_dim, self.group_size, self.rows, b, self.codebook) for b in self.bits if b < 16]
        made = made or [self._plain_buffers(n) for _ in self.bits]
        recent = dict(k_recent=made[0][2], v_recent=made[1][2]) if self.rows else {}
        sides = (*made[0][:2], *made[1][:2])
        options = self.rotations | self.centres | recent | dict(codebook=self.codebook)
        ops.quantize_kv(k, v, *sides, 0, **options)
        return sides, options

    def _plain_buffers(self, n):
        shape = 1, self.heads, max(n, 1)
        return [torch.zeros(*shape, self.head_dim, device=DEVICE), torch.zeros(*shape, 0, dtype=torch.float16, device=DEVICE),
                torch.zeros(1, self.heads, max(self.rows, 1), self.head_dim, dtype=torch.float16, device=DEVICE)]

    def call(self, q, sequences, lengths=None, **options):
        """The arguments of attend_paged: q[i] [queries, num_heads, head_dim] are the last queries of sequences[i]."""
        lengths = lengths or [self.lengths[s] for s in sequences]
        width = max([len(self.pages[s]) for s in sequences], default=0) + 1
        table = int32([self.pages[s] + [-1] * (width - len(self.pages[s])) for s in sequences]).view(-1, width)
        counts = [len(rows) for rows in q]
        starts = int32([sum(counts[:i]) for i in range(len(counts) + 1)])
        recent = {}
        if self.rows:
            recent = dict(rings=int32([self.rings[s] for s in sequences]), recent_starts=int32([max(n - self.rows, 0) for n in lengths]))
        options = self.rotations | self.centres | self.recents | recent | dict(codebook=self.codebook) | options
        return (torch.cat(q), *self.sides, table, int32(lengths), starts, max(counts, default=0), self.head_dim**-0.5), options

    def attend(self, q, sequences, **options):
        arguments, options = self.call(q, sequences, **options)
        return ops.attend_paged(*arguments, **options).split([len(rows) for rows in q])

    def attend_alone(self, q, s, **options):
        """torch.ops.int4kv.attend on the sequence's own cache."""
        sides, stored = self.alone[s]
        recent = dict(recent_start=max(self.lengths[s] - self.rows, 0)) if self.rows else {}
        rows = q.transpose(0, 1)[None]
        return ops.attend(rows, *sides, 0, self.lengths[s], self.head_dim**-0.5, **stored, **recent, **options)[0].transpose(0, 1)
