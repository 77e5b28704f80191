"""Continuous batching of a patched model: transformers' manager, scheduler and loop over packed pages."""

from functools import partial

from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.utils import logging

from ..config import Int4KVConfig
from ..paging.pool import check_paged
from .cache import Int4PagedAttentionCache, with_names

logger = logging.get_logger(__name__)
REFUSED = {  # ContinuousBatchingConfig: what it may be
    "cpu_offload_space": (0, 0.0, None), "use_async_batching": (None, False), "use_cuda_graph": (None, False, (False, False)),
    "varlen_compile_config": (None,), "decode_compile_config": (None,), "default_compile_level": (0,),
}


class Int4BatchingManager(ContinuousBatchingManager):
    """int4: how rows are stored. Everything else as transformers has it.

    Raises ValueError, by name, for what packed pages do not do: CPU offloading, asynchronous batches, CUDA graphs, torch.compile, tensor
    parallelism; and for an Int4KVConfig with sinks, start or max_cache_len.
    """

    def __init__(self, *, model, continuous_batching_config: ContinuousBatchingConfig, int4: Int4KVConfig, **settings):
        check_paged(int4)
        for name, accepted in REFUSED.items():
            value = getattr(continuous_batching_config, name)
            if value not in accepted:
                raise ValueError(f"{name} is {value!r}; accepted with int4 pages: {accepted[0]!r}")
        if "prompt" in (int4.centre, int4.v_centre):
            logger.warning_once("int4kv: the first request's centre serves all requests, so that they can share pages; "
                                "int4kv.calibrate gives one that does not depend on who comes first")
        self.int4 = int4
        super().__init__(model=model, continuous_batching_config=continuous_batching_config, **settings)
        if self.distributed_helper.tp_size > 1:
            raise ValueError(f"the model is split over {self.distributed_helper.tp_size} devices; accepted with int4 pages: one")

    def switch_to_cb_friendly_attn(self, model, auto_switch_to_flash=True):
        pass  # a patched model has the attention that it needs

    def _create_batch_processor(self):
        cache = partial(Int4PagedAttentionCache, int4=self.int4)
        processor = with_names(ContinuousBatchingManager._create_batch_processor, PagedAttentionCache=cache)(self)
        processor.cache.batch = processor.inputs_and_outputs
        processor.scheduler.add_waiting_request = partial(_admit, processor.cache, processor.scheduler)
        return processor


def _admit(cache, scheduler, state):
    """Scheduler.add_waiting_request; raising here fails one request and no other."""
    cache.check_fits(state)
    type(scheduler).add_waiting_request(scheduler, state)


def init_continuous_batching(model, generation_config=None, continuous_batching_config=None, workload_hints=None) -> Int4BatchingManager:
    """model.init_continuous_batching of a patched model; generate_batch, continuous_batching_context_manager and servers call it."""
    kept = getattr(model, "_cached_continuous_batching_manager", None)
    if isinstance(kept, Int4BatchingManager):
        return kept
    if kept is not None:
        raise ValueError("the model keeps a manager from before it was patched; call destroy_cached_continuous_batching_manager() first")
    generation_config = generation_config or model.generation_config
    if generation_config.eos_token_id is None:
        generation_config.eos_token_id = -1  # transformers' sign for none
    return Int4BatchingManager(model=model, generation_config=generation_config, workload_hints=workload_hints, int4=model._int4kv.config,
                               continuous_batching_config=continuous_batching_config or ContinuousBatchingConfig())
