"""What each process of the DistributedDataParallel test runs."""

import os

import torch
import torch.distributed as dist
from dover_kernels import dwconv3d_layernorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 1, 1, 3, 3))
        self.bias, self.ln_weight, self.ln_bias = (nn.Parameter(torch.randn(8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return dwconv3d_layernorm(x, self.weight, self.bias, self.ln_weight, self.ln_bias)


def train_step(rank: int, folder: str) -> None:
    """Writes this rank's own gradients and those after averaging to `folder`/`rank`.pt."""
    os.environ["DOVER_KERNELS"] = "triton"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    layer = Layer()
    torch.manual_seed(1 + rank)
    x, dz = torch.randn(1, 8, 1, 2, 3), torch.randn(1, 8, 1, 2, 3)
    layer(x).backward(dz)
    own = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    layer.zero_grad()
    parallel = DistributedDataParallel(layer)  # held: its hooks go with it
    parallel(x).backward(dz)
    averaged = {name: p.grad for name, p in layer.named_parameters()}
    torch.save({"own": own, "averaged": averaged}, f"{folder}/{rank}.pt")
    dist.barrier()
    # Past this, gloo's destructors can wait for ever for a peer that has already gone.
    os._exit(0)
