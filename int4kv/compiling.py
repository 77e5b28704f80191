"""What a patched model does so that only decode steps are compiled: one graph, whatever the prompts look like.

Two ways lead to a compiled step. generate() asks model.get_compiled_call; and users write model.forward = torch.compile(model.forward),
which takes the prompt through the compiled function as well. Steps that change more than positions run eagerly in both.
"""

import torch

from .naming import given_cache
from .static import Int4StaticCache


def must_run_eagerly(kwargs) -> bool:
    """Whether a call of the model with these arguments does more with its Int4StaticCache than to move on by a token."""
    cache = given_cache(kwargs)
    given = kwargs.get("input_ids")
    given = kwargs.get("inputs_embeds") if given is None else given
    return isinstance(cache, Int4StaticCache) and given is not None and not cache.is_settled(given.shape[1])


def compiled_call(model, compile_config):
    """In place of model.get_compiled_call: what generate() calls for every token after the prompt."""
    compiled = type(model).get_compiled_call(model, compile_config)

    def step(**kwargs):
        return (model.__call__ if must_run_eagerly(kwargs) else compiled)(**kwargs)

    return step


class EagerForward:
    """Around a call of a compiled model.forward: what must run eagerly does, the rest as before."""

    def __init__(self):
        self.stance = None

    def begin(self, kwargs) -> None:
        if must_run_eagerly(kwargs):
            self.stance = torch.compiler.set_stance("force_eager")

    def end(self) -> None:
        if self.stance is not None:
            self.stance.__exit__(None, None, None)
            self.stance = None
