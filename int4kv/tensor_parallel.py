"""Tensor parallelism (from_pretrained(..., tp_plan="auto") under torchrun): which key/value heads a rank holds.

    rank           0      1      2      3
    query heads    0 1    2 3    4 5    6 7      split by transformers
    KV heads       0      1      2      3        split by transformers where every rank gets whole heads
    KV heads       0      0      1      1        of two: each rank holds the one that its queries read
    all heads      0..7   0..7   0..7   0..7     where transformers gathers what a projection gives: fused ones (Phi-3), norms over all heads
"""

import re

import torch

from .config import kv_heads_of, text_config


SPLIT = ("colwise", "local_colwise")  # styles of a tp_plan that leave each rank its part of what a projection gives
FUSED = ("qkv_proj", "query_key_value", "Wqkv", "c_attn")


def held_heads(model) -> slice | None:
    """The KV heads that this process holds of a tensor-parallel model, after hold_whole_heads; None for all of them."""
    if not _attentions(model, "q_proj"):
        return None
    heads, (rank, ranks) = kv_heads_of(model.config), _place(model)
    first = rank * heads // ranks
    return slice(first, first + max(heads // ranks, 1))


def check_heads(model) -> None:
    """Raise ValueError when a tensor-parallel model's heads do not go into the number of ranks, or q, k and v are split as one."""
    for name in FUSED:
        if _attentions(model, name):
            raise ValueError(f"model is a {type(model).__name__} whose {name} is split over tensor-parallel ranks; accepted: q_proj, k_proj and "
                             f"v_proj apart, or {name} as 'colwise_gather_output' in the tp_plan: every rank then holds all heads")
    if not _attentions(model, "q_proj"):
        return
    heads, queries, (_, ranks) = kv_heads_of(model.config), text_config(model.config).num_attention_heads, _place(model)
    for name, count, fits in (("num_key_value_heads", heads, heads % ranks == 0 or ranks % heads == 0),
                              ("num_attention_heads", queries, queries % ranks == 0)):
        if not fits:
            also = " and divisors" if name == "num_key_value_heads" else ""
            raise ValueError(f"{name} is {count} with {ranks} tensor-parallel ranks; accepted: multiples{also} of {ranks}")


def hold_whole_heads(model) -> None:
    """With fewer KV heads than ranks transformers splits within a head; give each rank the whole head that its queries read.

    All ranks call it together: the heads are gathered. The model stays so, also without int4kv; where nothing is split it does nothing.
    """
    heads = kv_heads_of(model.config)
    for attention in _attentions(model, "k_proj"):
        rank, ranks = _place(model)
        if heads >= ranks:
            return
        for projection in (attention.k_proj, attention.v_proj):
            _keep_head(projection, rank * heads // ranks, heads)
        attention.num_key_value_groups = text_config(model.config).num_attention_heads // ranks


def _keep_head(projection, head, heads):
    for name, parameter in list(projection.named_parameters(recurse=False)):
        whole = parameter.full_tensor().detach()
        setattr(projection, name, torch.nn.Parameter(whole.chunk(heads)[head].clone(), parameter.requires_grad))
    projection.out_features = projection.weight.shape[0]
    projection.__dict__.pop("forward", None)  # what transformers put around a split one


def _attentions(model, projection) -> list:
    """Attention modules of which each rank has a part of what the projection of this name gives."""
    if (getattr(model, "_tp_size", None) or 1) == 1:
        return []
    from torch.distributed.tensor import DTensor

    return [module for name, module in model.named_modules()
            if isinstance(getattr(getattr(module, projection, None), "weight", None), DTensor)
            and _style(model, f"{name}.{projection}") in SPLIT]


def _style(model, name) -> str | None:
    """What the tp_plan says of a module; layers are * there."""
    return model.tp_plan.get(re.sub(r"\.\d+\.", ".*.", name))


def _place(model) -> tuple[int, int]:
    """This process's rank among those that share the model's heads, and their number."""
    mesh = model._device_mesh
    return (mesh.get_local_rank("tp") if mesh.mesh_dim_names else mesh.get_local_rank()), model._tp_size
