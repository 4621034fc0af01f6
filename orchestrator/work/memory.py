"""The most memory that a stretch of work took."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


class PeakMemory:
    """The highest memory since `reset`, in MiB.

    On a GPU what torch's allocator had handed out there. On the CPU the resident set of the process: interpreter and
    libraries are in it, some hundred MiB. Where the system cannot forget a process's peak (anything but Linux) it is
    that of the process's life.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> None:
        """Forget the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):
                (_PROCESS / "clear_refs").write_text("5", "ascii")  # 5: the peak of the resident set alone (proc(5))

    def mib(self) -> float:
        """Return the peak."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        with suppress(OSError, StopIteration):
            lines = (_PROCESS / "status").read_text("ascii", "replace").splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10
        unit = 1 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
