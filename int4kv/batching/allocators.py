"""transformers' allocators of cache pages, with packed codes in the pages: block tables, prefix sharing and forks stay theirs.

Their memory is counted in bytes; a page of ours has about 0.26 times those of an fp16 one, so as many more tokens fit.
"""

from transformers.generation.continuous_batching.cache_allocators import FullAttentionCacheAllocator, SlidingAttentionCacheAllocator

from ..paging.layout import PageLayout


class PackedPages(FullAttentionCacheAllocator):
    """Pages of layers with full attention. layout: that of a block, a page of all these layers. bytes_per_page: for each of them."""

    def __init__(self, *, layout: PageLayout, bytes_per_page: int, **settings):
        super().__init__(**settings)
        self.layout, self.bytes_per_page = layout, bytes_per_page
        self.bytes_per_block = bytes_per_page * self.pages_per_block

    def register_cache_tensor(self, bytes_per_sector, non_trash_bytes, cache_tensor, pool):
        self.bytes_per_sector = bytes_per_sector
        self._copy_view = cache_tensor.view(-1, self.bytes_per_block)  # by this name the base class copies blocks
        self._after_cache_tensor_init(non_trash_bytes, bytes_per_sector, cache_tensor, pool)

    def stored(self, layer: int) -> list:
        """k_codes, k_scales, v_codes, v_scales of a layer, each [blocks, page_size, num_key_value_heads, ...]."""
        return self.layout.views(self._copy_view, layer)

    def table(self, request_id: str) -> list[int]:
        """The request's block of token t at t // page_size."""
        return self.block_table[request_id]

    def seen_from(self, past_length: int, query_length: int) -> int:
        """The first token that queries after a chunk, or of one that does not start the sequence, see."""
        return 0

    def blocks_for(self, prompt: int, total: int) -> int:
        """The most blocks that a request of so many tokens ever has at once."""
        return -(-total // self.tokens_per_page)

    def get_write_indices(self, request_id, past_length, query_length):
        return []  # attention takes block tables

    get_read_indices = get_write_indices


class PackedSlidingPages(PackedPages):
    """Pages of sliding layers: the block table moves along with the window, and blocks that fall behind are used again in front.

    exact: the first chunk of a sequence attends to itself as it is, so that only what later queries see is stored.
    """

    supports_block_sharing = False
    supports_block_table = False
    layer_type = SlidingAttentionCacheAllocator.layer_type

    def __init__(self, *, config, exact: bool, **settings):
        super().__init__(config=config, **settings)
        self.sliding_window, self.exact = config.sliding_window, exact
        self.first_block: dict[str, int] = {}

    def seen_from(self, past_length, query_length):
        begin = query_length if self.exact and past_length == 0 else past_length
        return max(0, begin - self.sliding_window + 1)

    def _span(self, past_length, query_length):
        return self.seen_from(past_length, query_length) // self.tokens_per_page, -(-(past_length + query_length) // self.tokens_per_page)

    def _behind(self, request_id, first):
        """How many of the request's blocks lie before its block `first`, and the block that would be added next."""
        held, begin = len(self.block_table.get(request_id, [])), self.first_block.get(request_id, 0)
        return min(max(first - begin, 0), held), max(begin + held, first)

    def needs_new_blocks(self, request_id, past_length, query_length):
        first, end = self._span(past_length, query_length)
        behind, added_from = self._behind(request_id, first)
        return max(0, end - added_from - behind)

    def allocate_cache_to_request(self, request_id, past_length, query_length):
        first, end = self._span(past_length, query_length)
        behind, added_from = self._behind(request_id, first)
        fresh = self.pool.get_free_blocks(self.index, self.needs_new_blocks(request_id, past_length, query_length))
        blocks = self.block_table.setdefault(request_id, [])
        spare, added = blocks[:behind] + fresh, max(0, end - added_from)
        self.block_table[request_id] = blocks[behind:] + spare[:added]
        self.pool.free_blocks(self.index, spare[added:])
        self.first_block[request_id] = max(first, self.first_block.get(request_id, 0))

    def table(self, request_id):
        return [0] * self.first_block[request_id] + self.block_table[request_id]

    def blocks_for(self, prompt, total):
        return -(-min(total, self.sliding_window + prompt) // self.tokens_per_page) + 1

    def fork_blocks(self, source_request_id, dest_request_id, past_length):
        self.first_block[dest_request_id] = self.first_block[source_request_id]
        return super().fork_blocks(source_request_id, dest_request_id, past_length)

    def free_blocks(self, request_id, no_cache=False):
        self.first_block.pop(request_id, None)
        super().free_blocks(request_id, no_cache)
