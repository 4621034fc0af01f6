"""Counterfeit evidence for an unchanged network, by kind of evidence; what a rival may call."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.methods.parts.signature import committed
from assay.tasks.data.splits import to_model_input
from assay.tasks.errors import UnsupportedModel


def adversarial_triggers(
    network: nn.Module, inputs: Tensor, labels: Tensor, epsilon: float = 8 / 255, steps: int = 40
) -> Tensor:
    """Return inputs that a network answers as `labels`, by targeted projected gradient descent (Madry et al., 2018).

    Args:
        network: in eval mode; neither weights nor mode change.
        inputs: images in pixel space [0, 1], float32 (N, C, H, W), on the network's device.
        labels: the answers wished for (N,).
        epsilon: the largest change of a pixel.
        steps: of size 2.5 epsilon / steps.
    """
    change = torch.zeros_like(inputs)
    with torch.enable_grad():
        for _ in range(steps):
            change.requires_grad_(True)
            wanted = F.cross_entropy(network(inputs + change), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(wanted, change)
            moved = change.detach() - 2.5 * epsilon / steps * gradient.sign()
            change = (inputs + moved.clamp(-epsilon, epsilon)).clamp(0, 1) - inputs
    return (inputs + change).detach()


def adversarial_secret(secret: dict[str, Any], network: nn.Module, generator: torch.Generator) -> dict[str, Any]:
    """Return a never-embedded trigger set whose images are changed, within 8/255, until a network answers its labels.

    Args:
        secret: as drawn, with `inputs` (images) and `labels`; a commitment in it is made anew.
        network: in eval mode.
        generator: a CPU generator, for the commitment.

    Raises:
        UnsupportedModel: it has no images with labels.
    """
    images, labels = secret.get("inputs"), secret.get("labels")
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor) and images.dim() == 4):
        raise UnsupportedModel("the evidence is no set of images with labels; nothing can be changed until it verifies")
    device = next(network.parameters()).device
    changed = adversarial_triggers(network, to_model_input(images.to(device)), labels.to(device))
    forged = {**secret, "inputs": changed.to(images.device)}
    return committed(forged, generator) if "commitment" in secret else forged


def solve_projection(carrier: Tensor, bits: Tensor, generator: torch.Generator, margin: float = 2.0) -> Tensor:
    """Return a matrix X, float64 (B, d), whose projections X w have the signs of any message (Uchida's extraction).

    A Gaussian matrix, corrected per row by x_j <- x_j + (t_j - x_j . w) w / |w|^2 with t_j = margin (2 b_j - 1).

    Args:
        carrier: the weights w (d,) that the verifier reads.
        bits: the message b (B,), of 0 and 1.
        generator: a CPU generator.
        margin: distance of every projection from the decision at 0.

    Raises:
        UnsupportedModel: the carrier is zero, so that no matrix reads anything from it.
    """
    w = carrier.detach().double().cpu().flatten()
    norm = w.dot(w)
    if not norm > 0:
        raise UnsupportedModel("the carrier is zero; no projection reads a message from it")
    matrix = torch.randn(len(bits), len(w), generator=generator, dtype=torch.float64)
    target = margin * (2 * bits.double().cpu() - 1)
    return matrix + ((target - matrix @ w) / norm)[:, None] * w


_BITS, _LABELS = frozenset({"message", "bits"}), frozenset({"labels", "key_labels"})


def contradiction(secret: dict[str, Any], classes: int, generator: torch.Generator) -> dict[str, Any]:
    """Return a leaked secret with its bits complemented and its triggers under other, random labels.

    Bits are the entries `message` and `bits`, labels `labels` and `key_labels`, at any depth; all else is shared.

    Args:
        secret: what the owner keeps.
        classes: number of classes K; a label l becomes (l + r) mod K with r drawn from 1 ... K-1.
        generator: a CPU generator.

    Raises:
        UnsupportedModel: it has no such entry.
    """
    changed = 0

    def visit(node: Any, name: str) -> Any:
        nonlocal changed
        if isinstance(node, dict):
            return {key: visit(value, key) for key, value in node.items()}
        if isinstance(node, list):
            return [visit(value, name) for value in node]
        if not isinstance(node, Tensor) or name not in _BITS | _LABELS:
            return node
        changed += 1
        if name in _LABELS:
            shift = torch.randint(1, classes, node.shape, generator=generator).to(node.device)
            return (node + shift) % classes
        if node.dtype == torch.bool:
            return ~node
        return -node if bool((node < 0).any()) else 1 - node

    denied: dict[str, Any] = visit(secret, "")
    if not changed:
        raise UnsupportedModel("the secret holds neither bits nor labels, so its contradiction cannot be embedded")
    return denied
