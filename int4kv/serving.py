"""A patched model behind transformers' own server: the OpenAI protocol, continuous batching, int4 pages."""

import time

import uvicorn
from transformers import ContinuousBatchingConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager, TimedModel
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerationState

from .config import head_dim_of, kv_heads_of, text_config

FOREVER = -1  # seconds that a model stays loaded


class OneModel(ModelManager):
    """transformers' model manager with one model, under one name, that was loaded and patched before."""

    def __init__(self, name: str, model, tokenizer):
        super().__init__(device=str(model.device), continuous_batching=True, model_timeout=FOREVER)
        self.force_model = name  # not passed above: it would be loaded again
        self.loaded_models[self.process_model_name(name)] = TimedModel(model, FOREVER, processor=tokenizer)
        self._since = int(time.time())

    def list_models(self, cache_dir=None) -> list[dict]:
        """What /v1/models lists."""
        return [{"id": self.force_model, "object": "model", "created": self._since, "owned_by": "int4kv"}]

    get_gen_models = list_models  # its name before transformers 5.24


def batching_config(model, nbytes: int, requests: int, page_size: int) -> ContinuousBatchingConfig:
    """Settings for a cache of so many bytes, which transformers counts in blocks of unpacked rows in the model's dtype."""
    block = 2 * text_config(model.config).num_hidden_layers * kv_heads_of(model.config) * head_dim_of(model.config) * page_size
    return ContinuousBatchingConfig(num_blocks=nbytes // (block * model.dtype.itemsize), max_requests_per_batch=requests, page_size=page_size)


def make_app(name: str, model, tokenizer, state: GenerationState):
    """The FastAPI application that serves a patched model as `name`: transformers' routes and handlers."""
    both = dict(model_manager=OneModel(name, model, tokenizer), generation_state=state)
    return build_server(
        both["model_manager"], ChatCompletionHandler(**both), completion_handler=CompletionHandler(**both),
        response_handler=ResponseHandler(**both), transcription_handler=TranscriptionHandler(**both), systemone_handler=SystemOneHandler(**both),
        generation_state=state)


def serve(name: str, model, tokenizer, batching: ContinuousBatchingConfig, host: str, port: int) -> None:
    """Answer requests until interrupted."""
    state = GenerationState(continuous_batching=True, cb_config=batching)
    try:
        uvicorn.run(make_app(name, model, tokenizer, state), host=host, port=port, log_level="info")
    finally:
        state.shutdown()  # its thread would keep the process alive
