"""Seconds of several contestants, taken in turns."""

import contextlib
import gc
import statistics
import time
from typing import NamedTuple

import numpy as np
import torch


class Aim(NamedTuple):
    """A number that a section has to reach."""

    text: str
    measured: float
    at_least: float | None = None
    at_most: float | None = None

    def as_dict(self):
        low, high = self.at_least, self.at_most
        bound = f"at least {low:g}" if high is None else f"at most {high:g}"
        met = self.measured >= low if high is None else self.measured <= high
        return {
            "aim": f"{self.text}: {bound}",
            "measured": self.measured,
            "met": bool(met),
        }


def take_turns(contestants, repeats):
    """Time functions without arguments, each `repeats` times, in turns.

    So a busy moment of the machine meets all of them. What a contestant returns first
    is kept under "result".
    """
    times = {name: [] for name in contestants}
    results = {}
    for _ in range(repeats):
        for name, run in contestants.items():
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            result = run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            times[name].append((wall, cpu))
            results.setdefault(name, result)
    return {
        name: {
            "seconds": statistics.median(wall for wall, _ in pairs),
            "cpu_seconds": statistics.median(cpu for _, cpu in pairs),
            "all_seconds": [wall for wall, _ in pairs],
            "result": results[name],
        }
        for name, pairs in times.items()
    }


@contextlib.contextmanager
def one_thread():
    """Let torch compute in one thread, so that CPU time is work and no waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def min_cosine(A, B):
    A, B = (np.asarray(rows, dtype=np.float64) for rows in (A, B))
    norms = np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=1)
    return float((np.sum(A * B, axis=1) / norms).min())
