"""Running means of a training by several processes."""

import torch
from torch import distributed, multiprocessing

from dover_eval.models.heads import StatisticsPool

SHARES = (slice(0, 1), slice(1, 4))  # of a batch of four clips: a single one, and the others


def moments():
    """Three batches (4,2): a wide moment, and one that is narrow for how large it is."""
    return torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.02]) + 100


def follow(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(SHARES))
    pool = StatisticsPool(2).train()
    for batch in moments():
        pool(batch[SHARES[rank]])
    torch.save(pool.state_dict(), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_processes_follow_the_clips_of_all_of_them_as_one_process_would(tmp_path):
    multiprocessing.start_processes(follow, (tmp_path,), nprocs=len(SHARES), start_method="fork")
    alone = StatisticsPool(2).train()
    for batch in moments():
        alone(batch)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(len(SHARES)))
    for name, want in alone.state_dict().items():
        torch.testing.assert_close(first[name], want)
        assert torch.equal(first[name], second[name])
