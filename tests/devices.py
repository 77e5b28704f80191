"""The device that the tests are about, chosen with pytest --device.

Numbers are made on the CPU by seeded generators and moved, so that they are the same everywhere; oracles run on the CPU.
"""

import os

import torch
from torch.utils._pytree import tree_map_only

DEVICE = torch.device(os.environ.get("INT4KV_DEVICE", "cpu"))


def on_device(values):
    """Every tensor in a tensor, list, tuple or dict on DEVICE; anything else as it is."""
    return tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), values)


def on_cpu(values):
    """The same on the CPU."""
    return tree_map_only(torch.Tensor, lambda t: t.cpu(), values)
