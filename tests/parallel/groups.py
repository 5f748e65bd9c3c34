"""Ranks for tests: processes of their own, or one rank whose messages from the others are known beforehand."""

import multiprocessing
import os
import socket

import torch

from metarl_l2f.parallel.ranks import Group, join

# A server that has imported torch forks ranks at once, instead of each of them importing it anew.
RANKS = multiprocessing.get_context("forkserver")
RANKS.set_forkserver_preload(["metarl_l2f.rl.experiment", "metarl_l2f.supervised.experiment", "torch._dynamo"])


class Fake(Group):
    """One of several ranks, whose sums and gatherings with the others are known beforehand."""

    def __init__(self, rank, size, others=()):
        self.rank, self.size, self.others = rank, size, list(others)

    def sum(self, values):
        return values + sum(self.others)

    def gather(self, value):
        return [*self.others[: self.rank], value, *self.others[self.rank :]]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def one_of(size, rank, port):
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def rank_of(work, timeout, size, rank, port, answers):
    torch.set_num_threads(1)
    os.environ |= one_of(size, rank, port)
    with join(timeout) as group:
        answer = work(group)
    answers.put((rank, answer))


def by_ranks(work, size, timeout=60.0):
    """What `work(group)` gives each of `size` ranks, in their order."""
    port, answers = free_port(), RANKS.Queue()
    ranks = [RANKS.Process(target=rank_of, args=(work, timeout, size, rank, port, answers)) for rank in range(size)]
    for process in ranks:
        process.start()
    found = dict(answers.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join()
    return [found[rank] for rank in range(size)]
