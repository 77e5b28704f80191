"""The device that the tests are about, chosen with pytest --device.

Numbers are made on the CPU by seeded generators and moved, so that they are the same everywhere; oracles run on the CPU.
"""

import os

import torch
from torch.utils._pytree import tree_map_only

DEVICE = torch.device(os.environ.get("INT4KV_DEVICE", "cpu"))
# Error of attention, relative to the largest output, by the dtype of q. fp16 and bf16: one rounding of the output. fp32: on mps scores (up to
# 60) and sums in fp32; on the CPU q and the weights are integers of 16 bits, off by 2^-16 of a row's and a tile's largest; CUDA's matrix units
# take the weights of the values as fp16: 2^-11 each.
FLOAT32 = {"cpu": 5e-4, "mps": 1e-5, "cuda": 1e-3}[DEVICE.type]
TOLERANCE = {torch.float32: FLOAT32, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def on_device(values):
    """Every tensor in a tensor, list, tuple or dict on DEVICE; anything else as it is."""
    return tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), values)


def on_cpu(values):
    """The same on the CPU."""
    return tree_map_only(torch.Tensor, lambda t: t.cpu(), values)
