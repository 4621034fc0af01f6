"""What a device multiplies fastest. Told by its features, never by timing: the answer becomes part of stages' keys."""

from __future__ import annotations

import torch

from assay.tasks.training.schedule import Schedule


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for products of bfloat16 matrices (sums stay in float32)."""
    if device.type == "cuda":
        if not torch.cuda.is_available():  # planned on a head for its cluster's GPUs; all since 2020 have them
            return True
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def settle(schedule: Schedule, device: torch.device) -> Schedule:
    """Return the schedule with `precision: auto` replaced by what suits the device; any other one as it is."""
    if schedule.precision != "auto":
        return schedule
    settled: Schedule = schedule.but(precision="bf16" if has_fast_bf16(device) else "fp32")
    return settled
