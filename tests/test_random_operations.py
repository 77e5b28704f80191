"""Thousands of seeded operations on paged and contiguous caches against a plain list of rows: no mismatch, no page leaked."""

import copy
import json
import random

import pytest
import torch
from devices import DEVICE, FLOAT32, on_cpu, on_device
from transformers import Gemma3TextConfig

import int4kv
from int4kv import reference
from int4kv.attention import attend_chunk
from int4kv.config import ROLLBACK
from int4kv.layer import Int4Layer
from int4kv.saved import container, pages
from int4kv.saved.layers import describe, restore

HEADS, HEAD_DIM, WINDOW, RECENT = 1, 32, 20, 6
MODEL = Gemma3TextConfig(num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"], num_attention_heads=2, hidden_size=64,
                         num_key_value_heads=HEADS, head_dim=HEAD_DIM, sliding_window=WINDOW)
CONFIG = int4kv.Int4KVConfig(centre=None, recent=RECENT, prefill="packed")
OPERATIONS = 10_000 if DEVICE.type == "cpu" else 200
LONGEST, MOST_ROWS = 90, 8
TOLERANCE = max(FLOAT32, 1e-3)  # plain rows are float32, those read exactly are stored in fp16: 5e-4


class Vocabulary:
    """Keys and values of 256 tokens, float32 [256, head_dim], as they are and as they come back from their codes."""

    def __init__(self, rotation):
        generator = torch.Generator().manual_seed(5)
        self.exact = [torch.randn(256, HEAD_DIM, generator=generator) for _ in "kv"]
        self.decoded = [self._through_codes(x, rotation) for x in self.exact]

    def _through_codes(self, x, rotation):
        codes, scales = torch.zeros(1, 1, len(x), HEAD_DIM // 2, dtype=torch.uint8), torch.zeros(1, 1, len(x), 1, dtype=torch.float16)
        reference.quantize(x[None, None], codes, scales, 0, rotation=rotation, codebook="lloyd")
        return reference.dequantize(codes, scales, 0, len(x), HEAD_DIM, rotation=rotation, codebook="lloyd")[0, 0]


class PlainRow:
    """The oracle of one row: the list of its tokens; what is read exactly is counted off by hand."""

    def __init__(self):
        self.tokens, self.recent_start = [], 0

    def crop(self, length):
        self.recent_start = min(max(self.recent_start, len(self.tokens) - RECENT - ROLLBACK), length)
        self.tokens = self.tokens[:length]

    def attend(self, q, window, vocabulary):
        """q [2, queries, head_dim], of the last tokens of this row -> like q."""
        p, t = torch.arange(len(self.tokens) - q.shape[1], len(self.tokens))[:, None], torch.arange(len(self.tokens))
        recent = (t > p - RECENT) & (t >= self.recent_start)
        seen = (t <= p) & (t > p - (window or len(self.tokens)))
        (k, v), (k_decoded, v_decoded) = ([x[self.tokens] for x in rows] for rows in (vocabulary.exact, vocabulary.decoded))
        scores = torch.where(recent, q @ k.T, q @ k_decoded.T) * HEAD_DIM**-0.5
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return (weights * recent) @ v + (weights * ~recent) @ v_decoded


class Caches:
    """The same rows three times: in a paged cache, in contiguous layers of one row each, and in plain lists."""

    def __init__(self, pool, vocabulary):
        self.paged, self.vocabulary = int4kv.Int4PagedCache(pool), vocabulary
        self.rows = []  # (contiguous layers, PlainRow)

    def lengths(self):
        return [len(plain.tokens) for _, plain in self.rows]

    def add_rows(self, number):
        self.rows = [([Int4Layer(CONFIG, sliding_window=window) for window in (None, WINDOW)], PlainRow()) for _ in range(number)]

    def append(self, tokens, q, checked):
        """tokens [rows, n], q [rows, 2, n, head_dim]; compares attention of all three for one row."""
        k, v = on_device([x[tokens].unsqueeze(1) for x in self.vocabulary.exact])
        handed = [self.paged.store(k, v, i) for i in range(2)]
        chunks = [[layer.update(k[i : i + 1], v[i : i + 1])[0] for layer in layers] for i, (layers, _) in enumerate(self.rows)]
        for (_, plain), added in zip(self.rows, tokens.tolist()):
            plain.tokens = plain.tokens + added
        for rows, chunk, window in zip(handed, chunks[checked], (None, WINDOW)):
            ours = on_cpu(rows.attend(on_device(q), HEAD_DIM**-0.5, None))[checked]
            contiguous = on_cpu(attend_chunk(on_device(q[checked : checked + 1]), chunk, None, HEAD_DIM**-0.5))[0]
            plain = self.rows[checked][1].attend(q[checked], window, self.vocabulary)
            limit = TOLERANCE * plain.abs().max()
            assert (ours - contiguous).abs().max() < limit and (ours - plain).abs().max() < limit

    def crop(self, lengths):
        self.paged.crop_rows(lengths)
        for (layers, plain), length in zip(self.rows, lengths):
            for layer in layers:
                layer.crop(length - len(plain.tokens))
            plain.crop(length)

    def select(self, chosen):
        self.paged.batch_select_indices(torch.tensor(chosen))
        self.rows = [copy.deepcopy(self.rows[i]) if i in chosen[:place] else self.rows[i] for place, i in enumerate(chosen)]

    def save_and_load(self, place, crossed, file):
        """A row goes on as what files gave back: the contiguous layers from theirs and the pages from theirs, or crossed over."""
        layers, _ = self.rows[place]
        sequence, pool = self.paged.sequences[place], self.paged.pool
        contiguous = [written_and_read(file, *describe(layer)) for layer in layers]
        paged = [written_and_read(file, *pages.describe(pool, sequence, i, torch.float32)) for i in range(len(layers))]
        to_layers, to_pages = (paged, contiguous) if crossed else (contiguous, paged)
        for i, layer in enumerate(layers):
            layers[i] = Int4Layer(CONFIG, sliding_window=layer.sliding_window)
            restore(layers[i], *to_layers[i], DEVICE)
        self.paged.sequences[place] = pages.restore(pool, *zip(*to_pages))
        pool.free(sequence)

    def check(self):
        assert self.paged.lengths == self.lengths() == [layers[0].length for layers, _ in self.rows]


def written_and_read(file, numbers, tensors):
    container.write(file, json.dumps(numbers), tensors)
    text, tensors = container.read(file)
    return json.loads(text), tensors


def append(choose, caches):
    if not caches.rows:
        caches.add_rows(choose.randint(1, 3))
    tokens, rows = choose.choice([1, 1, 1, 2, 7, 33]), len(caches.rows)
    if max(caches.lengths()) + tokens <= LONGEST:
        generator = torch.Generator().manual_seed(choose.randrange(2**31))
        caches.append(torch.randint(256, (rows, tokens), generator=generator), torch.randn(rows, 2, tokens, HEAD_DIM, generator=generator),
                      choose.randrange(rows))


def crop(choose, caches):
    starts = [max(layers[1].codes.start, row.tables[1].start) for (layers, _), row in zip(caches.rows, caches.paged.sequences)]
    least = [start + WINDOW - 1 if start else 0 for start in starts]  # sliding layers forget
    caches.crop([choose.randint(max(min(n, low), n - ROLLBACK), n) for n, low in zip(caches.lengths(), least)])


def fork(choose, caches):
    if 2 * len(caches.rows) <= MOST_ROWS:
        caches.select([i for i in range(len(caches.rows)) for _ in range(2)])


def reorder(choose, caches):
    caches.select([choose.randrange(len(caches.rows)) for _ in caches.rows])


def free(choose, caches):
    if choose.random() < 0.3:
        caches.paged.free()
        caches.rows = []
    elif len(caches.rows) > 1:
        caches.select(choose.sample(range(len(caches.rows)), len(caches.rows) - 1))


@torch.no_grad()
@pytest.mark.timeout(600)
def test_random_operations_agree_and_leak_nothing(tmp_path):
    def save_and_load(choose, caches):
        place = choose.randrange(len(caches.rows))
        if caches.lengths()[place]:
            caches.save_and_load(place, choose.random() < 0.5, tmp_path / "row.safetensors")

    choose = random.Random(6)
    pool = int4kv.PagePool(MODEL, CONFIG, pages=3 * MOST_ROWS * (LONGEST // 8 + 2), sequences=3 * MOST_ROWS, page_size=8, device=DEVICE)
    held = [Caches(pool, Vocabulary(on_cpu(pool.layers[0].sides[0].rotation.write))) for _ in range(3)]
    for _ in range(OPERATIONS):
        caches = choose.choice(held)
        operation = choose.choices([append, crop, fork, reorder, free, save_and_load], [10, 3, 1, 2, 2, 1])[0]
        if caches.rows or operation is append:
            operation(choose, caches)
            caches.check()
    for caches in held:
        caches.paged.free()
    assert all(set(group.pages.owners) == {0} and group.pages.free == group.pages.count for group in pool.groups)
    assert pool.rings.free == pool.rings.count
