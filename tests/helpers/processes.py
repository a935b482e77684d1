"""Functions run in the processes of a gloo group."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2


def in_processes(function, *arguments):
    """Run function(rank, folder, *arguments) in RANKS processes of a gloo group."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(worker, (folder, function, arguments), nprocs=RANKS, start_method="fork")
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


def worker(rank, folder, function, arguments):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, store=store)
    try:
        torch.save(function(rank, *arguments), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
