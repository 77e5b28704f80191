"""The cache of transformers' continuous batching with packed pages, and a ring of exact rows per running request."""

import sys
from functools import partial
from types import FunctionType

from transformers.generation.continuous_batching.cache import (
    FULL_ATTENTION, SLIDING_ATTENTION, PagedAttentionCache, PagedAttentionMemoryHandler, group_layers_by_attn_type,
)
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads

from ..attention import NAME
from ..config import Int4KVConfig
from ..paging.batch import Span, Step
from ..paging.layer import PagedLayer, plan_layers
from ..paging.layout import PageLayout, aligned
from .allocators import PackedPages, PackedSlidingPages
from .rings import SectorPool, SectorRings, sectors_of


def with_names(function, **names) -> FunctionType:
    """The function with other meanings of some names of its module, for this caller alone: the module stays as it is.

    transformers makes its cache and its allocators by class names, without a parameter for them. NotImplementedError when that has changed.
    """
    missing = set(names) - set(function.__code__.co_names)
    if missing:
        import transformers

        raise NotImplementedError(f"transformers is {transformers.__version__}, whose {function.__qualname__} does not use {missing.pop()}; "
                                  "continuous batching with int4kv was made for 5.23 and 5.24")
    seen = vars(sys.modules[function.__module__]) | names
    changed = FunctionType(function.__code__, seen, function.__name__, function.__defaults__, function.__closure__)
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed


class PackedMemory(PagedAttentionMemoryHandler):
    """How much fits. Masks and unpacked copies do not exist, and take no room. ring_bytes: of the exact rows of a request."""

    def __init__(self, ring_bytes: int, **settings):
        super().__init__(**settings)
        self.ring_bytes = ring_bytes
        self.num_attention_masks, self.kv_heads_at_peak = 0, 0

    def infer_max_batch_tokens_and_num_sectors(self):
        max_batch_tokens, sectors = super().infer_max_batch_tokens_and_num_sectors()
        needed = sectors_of(self.ring_bytes, self.bytes_per_sector) + self.num_groups
        if sectors < needed:
            raise ValueError(f"num_blocks or max_memory_percent leave {sectors * self.bytes_per_sector} bytes for the cache; accepted: "
                             f"{needed * self.bytes_per_sector} or more")
        return max_batch_tokens, sectors


class Int4PagedAttentionCache(PagedAttentionCache):
    """int4: how rows are stored. The other arguments are transformers', by name. num_blocks counts the bytes of so many fp blocks.

    A running request has a ring from its first token to its last, in the same memory: where no room is left for one it waits, as for pages.
    """

    def __init__(self, *, int4: Int4KVConfig, config, continuous_batching_config, device, dtype, **settings):
        self.int4, self.exact = int4, int4.prefill == "exact"
        count, heads, head_dim = config.num_hidden_layers, find_num_key_value_heads(config), find_head_dim(config)
        self._configs, self._sides, ring = plan_layers(int4, count, heads, head_dim, device, rollback=0)
        allocators = self._allocators(config, continuous_batching_config.page_size, dtype)
        make = with_names(PagedAttentionCache.__init__, ATTN_TYPE_TO_ALLOCATOR=allocators, CachePool=SectorPool,
                          PagedAttentionMemoryHandler=partial(PackedMemory, ring.nbytes))
        make(self, config=config, continuous_batching_config=continuous_batching_config, device=device, dtype=dtype, **settings)
        self.rings = SectorRings(self.pool, self.cache_tensor, self.bytes_per_sector, ring)
        self.layers = {i: self._layer(i) for i in range(count)}
        self._running: dict[str, tuple[int, int]] = {}  # request -> its ring, and the first token that lies in it
        self._ring_copies: list[tuple[int, int]] = []
        self.batch = None  # transformers' inputs of the next forward pass, set by the manager

    def _allocators(self, config, page_size, dtype):
        groups = group_layers_by_attn_type(config)
        layouts = {kind: PageLayout({i: self._sides[i] for i in layers}, page_size, dtype) for kind, layers in groups.items()}
        bytes_per_page = max(aligned(-(-layout.nbytes // len(groups[kind]))) for kind, layout in layouts.items())
        classes = {FULL_ATTENTION: PackedPages, SLIDING_ATTENTION: partial(PackedSlidingPages, exact=self.exact)}
        return {kind: partial(classes[kind], layout=layouts[kind], bytes_per_page=bytes_per_page) for kind in groups}

    def _layer(self, i):
        allocator = self.layer_to_allocator[i]
        window = getattr(allocator, "sliding_window", None)
        return PagedLayer(self._configs[i], self._sides[i], allocator.stored(i), allocator.index, window, self.rings.views(i))

    @property
    def nbytes(self) -> int:
        """Bytes of all pages and rings, in use or not."""
        return self.cache_tensor.numel()

    def check_fits(self, state) -> None:
        """ValueError for a request that this cache could not hold even if it were alone."""
        prompt = len(state.initial_tokens)
        total = prompt + max((state.max_new_tokens or 1) - 1, 0)
        blocks = {name: allocator.blocks_for(prompt, total) for name, allocator in self.cache_allocators.items()}
        sectors = self.rings.sectors + sum(-(-n // self.cache_allocators[name].blocks_per_sector) for name, n in blocks.items())
        if sectors > self.num_sectors:
            needed = " and ".join(f"{n} pages of {name}" for name, n in blocks.items())
            raise ValueError(f"request {state.request_id} has {prompt} tokens and max_new_tokens {state.max_new_tokens}, {needed} and a ring: "
                             f"{sectors * self.bytes_per_sector} bytes; accepted: up to {self.num_sectors * self.bytes_per_sector}, all there are")

    # ---- requests come and go ------------------------------------------------------------------------------------

    def can_store_request_tokens(self, state, request_len, dry_run=False):
        if state.request_id in self._running:
            return super().can_store_request_tokens(state, request_len, dry_run)
        ring = self.rings.take()
        if ring is None:
            return False
        fits = super().can_store_request_tokens(state, request_len, dry_run)
        if fits and not dry_run:
            self._running[state.request_id] = ring, state.current_len()
        else:
            self.rings.release(ring)
        return fits

    def free_blocks(self, request_id, no_cache=False):
        super().free_blocks(request_id, no_cache)
        self._release_ring(request_id)

    def free_all_requests(self, clear_ledgers=False):
        super().free_all_requests(clear_ledgers)
        for request_id in list(self._running):
            self._release_ring(request_id)

    def _release_ring(self, request_id):
        if request_id in self._running:
            self.rings.release(self._running.pop(request_id)[0])

    def prepare_fork_request(self, src_state, dst_req_ids, copy_src_and_dst):
        source, start = self._running[src_state.request_id]
        forked = []
        for request_id in dst_req_ids:  # one after the other: a ring for the next must not take the pages of this one
            ring = self.rings.take()
            if ring is None:
                break
            if not super().prepare_fork_request(src_state, [request_id], copy_src_and_dst):
                self.rings.release(ring)
                break
            self._running[request_id] = ring, start
            self._ring_copies.append((source, ring))
            forked.append(request_id)
        return forked

    def perform_cache_copy(self, copy_src_and_dst):
        super().perform_cache_copy(copy_src_and_dst)
        self.rings.copy([a for a, _ in self._ring_copies], [b for _, b in self._ring_copies])
        self._ring_copies = []

    # ---- a forward pass ------------------------------------------------------------------------------------------

    def attend(self, layer_idx: int, query, key, value, scaling: float, softcap: float | None = None):
        """Store a batch's new keys and values and attend: query, key and value [1, heads, tokens of all requests, head_dim].

        Returns [1, tokens, num_heads, head_dim].
        """
        if layer_idx == 0:
            self._step = self._next_step()
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return self.layers[layer_idx].store(k, v, self._step).attend(q, scaling, softcap).unsqueeze(0)

    def _next_step(self):
        spans = [self._span(future.state, future.query_length) for future in self.batch.requests_in_batch]
        page_size = next(iter(self.cache_allocators.values())).tokens_per_page
        return Step(spans, page_size, self.rings.rows, self.rings.tensor.device, self.exact)

    def _span(self, state, tokens):
        begin = state.position_offset - tokens  # it was moved on when the batch was prepared
        allocators = self.cache_allocators.values()
        kept = [allocator.seen_from(0, tokens) if begin == 0 else begin for allocator in allocators]
        return Span(begin, tokens, [allocator.table(state.request_id) for allocator in allocators], kept, *self._running[state.request_id])

    def update(self, key_states, value_states, layer_idx, kwargs):
        """Models call this from transformers 5.24 on, with the arguments of attention; before, the cache is among those by itself."""
        if self.config._attn_implementation != NAME:
            raise ValueError(f"the model's attention is {self.config._attn_implementation}; accepted with int4 pages: {NAME}")
        kwargs["cache"] = self
        return key_states, value_states
