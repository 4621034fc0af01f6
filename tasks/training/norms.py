"""The batch norms of a network, and their running statistics measured anew after its weights were edited."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from assay.tasks.data.splits import to_model_input
from assay.tasks.training.meter import Meter

_BATCH = 128
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """Return the batch norms of a network, in its order."""
    return [layer for layer in model.modules() if isinstance(layer, BatchNorm)]


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether any layer of a network is a batch norm."""
    return bool(batch_norms(model))


def refresh_statistics(model: nn.Module, inputs: Tensor, meter: Meter) -> None:
    """Replace the running statistics of every batch norm by their plain average over one pass, in place.

    Only batch norms are in training mode meanwhile, so dropout does not thin what they see.

    Args:
        model: the network; it comes back in eval mode.
        inputs: stored inputs (N, …), N ≥ 2; a last batch of one sample is left out.
        meter: counts the pass and notes the samples.
    """
    norms = batch_norms(model.eval())
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    meter.touch(inputs)
    with torch.no_grad(), meter.watch(model):
        for batch in inputs.split(_BATCH):
            if norms and len(batch) > 1:
                model(to_model_input(batch))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
