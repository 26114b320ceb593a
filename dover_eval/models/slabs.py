"""Large tensors slab by slab, where that is faster: on a CPU that only scores.

What lies between two steps then fits into the caches. And memory of tens of megabytes is not taken from the system for
each step, page by page, and given back after it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ELEMENTS = 2**18  # of a slab, a megabyte in fp32


def in_slabs(function: Callable[..., Tensor], *tensors: Tensor, dims: int = 1, least: int = 1) -> Tensor:
    """`function(*tensors)`, whose rows depend on the same rows of `tensors` alone; rows are those of the first `dims`
    dimensions, which all tensors have alike. A slab has `ELEMENTS` elements or so, and `least` rows.

    At once on a GPU, which would wait for launches; where gradients are recorded, which keep everything anyway; and
    for a compiler, which joins the steps.
    """
    x = tensors[0]
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or x.numel() <= ELEMENTS:
        return function(*tensors)
    shape = x.shape[:dims]
    rows = max(least, ELEMENTS * shape.numel() // x.numel())
    slabs = zip(*(tensor.flatten(0, dims - 1).split(rows) for tensor in tensors), strict=True)
    return torch.cat([function(*slab) for slab in slabs]).unflatten(0, shape)
