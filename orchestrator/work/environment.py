"""This process and this machine: threads, determinism, and what the figures may depend on."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

import torch

from assay.orchestrator.keys import content_key
from assay.orchestrator.work.bench import Context
from assay.tasks.errors import BadInput


def prepare(context: Context) -> None:
    """Set this process's threads and determinism; cheap, so it is done before every stage."""
    if torch.get_num_threads() != context.threads:
        torch.set_num_threads(context.threads)
    settle_kernels(context.device)


def settle_kernels(device: str) -> None:
    """Let a GPU compute the same bits every time, and float32 where float32 is said; a CPU does so by itself."""
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False  # `fp32` means fp32: permuted networks must agree to 1e-5


def require(device: str) -> None:
    """Insist that a device is on this machine.

    Raises:
        BadInput: it is a GPU, and there is none.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"--device {device}: torch finds no CUDA device here; take cpu")


@lru_cache(maxsize=1)
def environment(device: str) -> dict[str, str]:
    """Return what the figures may depend on: versions, processor, device."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": processor,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def environment_hash(facts: dict[str, str]) -> str:
    """Return a short name of an environment."""
    return content_key(facts)[:12]
