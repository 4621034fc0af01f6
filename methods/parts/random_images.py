"""Random images that carry labels for a network to memorise, and how they join the training set.

Images come from SHAKE-256 of a key, so the same key gives the same carriers on any machine and for ever; a secret need
not hold them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from assay.tasks.lab import Lab
from assay.tasks.networks.architectures import Shape
from assay.tasks.training.trainer import Batch

Law = Literal["walk", "uniform", "gaussian", "one-hot"]
_MOVES = torch.tensor([[-1, 1, 0, 0], [0, 0, -1, 1]])  # rows and columns of up, down, left, right


class _Bytes:
    """Numbers from one stream of SHAKE-256, taken in order."""

    def __init__(self, domain: str, key: bytes, count: int) -> None:
        self.stream = np.frombuffer(hashlib.shake_256(domain.encode() + b"|" + key).digest(count), np.uint8)
        self.used = 0

    def _take(self, count: int) -> NDArray[np.uint8]:
        self.used += count
        return self.stream[self.used - count : self.used]

    def integers(self, *shape: int) -> Tensor:
        """Return integers in [0, 2**32), int64."""
        words = self._take(4 * int(np.prod(shape))).view(">u4")
        return torch.from_numpy(words.astype(np.int64)).view(shape)

    def directions(self, *shape: int) -> Tensor:
        """Return integers in [0, 4), int64."""
        return torch.from_numpy((self._take(int(np.prod(shape))) & 3).astype(np.int64)).view(shape)


def _uniform(integers: Tensor) -> Tensor:
    """Return float32 in [0, 1), multiples of 2**-24 and so exact everywhere, from integers in [0, 2**32)."""
    return ((integers >> 8).double() / 2**24).float()


def walk_images(directions: Tensor, values: Tensor, shape: Shape) -> Tensor:
    """Return random walks (m, C, H, W), zero where the walk never came.

    The walk starts at (H // 2, W // 2) and stops at the border; a pixel holds the value of the last visit.

    Args:
        directions: int64 (m, steps) in 0 to 3: up, down, left, right.
        values: of any type (m, steps + 1, C), of the start and of each step.
        shape: (C, H, W).
    """
    count, steps = directions.shape
    channels, height, width = shape
    here = torch.tensor([[height // 2], [width // 2]]).expand(2, count)
    last = torch.tensor([[height - 1], [width - 1]])
    corner = torch.zeros_like(last)
    path = [here]
    for move in _MOVES[:, directions.T.contiguous()].unbind(1):  # (2, m) each
        here = (here + move).clamp(corner, last)
        path.append(here)
    rows, columns = torch.stack(path).unbind(1)  # (steps + 1, m)
    time = torch.arange(steps + 1)[:, None].expand(-1, count)
    visit = torch.full((height * width, count), -1).scatter_reduce(0, rows * width + columns, time, "amax").T
    painted = values.gather(1, visit.clamp_min(0).unsqueeze(2).expand(-1, -1, channels)) * (visit >= 0).unsqueeze(2)
    return painted.transpose(1, 2).reshape(count, channels, height, width).contiguous()


def carrier_images(law: Law, key: bytes, count: int, shape: Shape) -> Tensor:
    """Return carriers: float32 (count, C, H, W) in [0, 1].

    Laws: `walk`, H W steps of `walk_images`; `uniform` and `gaussian` (mean 1/2, deviation 1/4, clipped) noise;
    `one-hot`, one or two pixels of random value. The bytes of all directions, or pixels, come before those of all
    values, image by image.
    """
    channels, height, width = shape
    pixels = height * width
    draws = _Bytes(f"carriers/{law}", key, count * (pixels * (4 * channels + 1) + 4 * channels + 8))
    if law == "walk":
        directions, values = draws.directions(count, pixels), draws.integers(count, pixels + 1, channels)
        # In parts that stay in cache: ten thousand colour images at once took twice as long.
        parts = zip(directions.split(500), values.split(500), strict=True)
        return torch.cat([_uniform(walk_images(*part, shape)) for part in parts])
    if law == "one-hot":
        places = (draws.integers(count, 1, 2) % pixels).expand(-1, channels, -1)
        images = torch.zeros(count, channels, pixels)
        return images.scatter_(2, places, _uniform(draws.integers(count, channels, 1)).expand(-1, -1, 2)).view(
            count, *shape
        )
    noise = _uniform(draws.integers(count, *shape))
    if law == "uniform":
        return noise
    return (0.5 + 0.25 * torch.special.ndtri(noise.double().clamp_min(2.0**-25))).clamp(0, 1).float()


class WithCarriers:
    """Carriers spread at random over an epoch, each `repeat` times, as if shuffled together with the clean samples.

    The clean batches stay as they are: a carrier that falls between two clean samples of a batch joins that batch. So
    a batch grows by a random number of carriers, none included, and the epoch keeps its number of steps. The places
    depend on the lab's stream `inject` and the epoch alone, so nothing has to survive a restart.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, samples: int, repeat: int, lab: Lab) -> None:
        """Keep the carriers on the lab's device.

        Args:
            inputs: float32 (m, C, H, W) in [0, 1].
            labels: class indices (m,).
            samples: clean samples of an epoch, at least 1.
            repeat: how often each carrier is seen in an epoch.
            lab: names the stream and the device.
        """
        self.inputs, self.labels = inputs.to(lab.device), labels.to(lab.device)
        self.samples, self.repeat, self.lab = samples, repeat, lab

    def shuffle(self, epoch: int) -> None:
        """Draw the places of `epoch` (from 0)."""
        draws = self.lab.stream("inject", epoch)
        total = len(self.labels) * self.repeat
        order = torch.randperm(total, generator=draws) % len(self.labels)
        places = torch.randint(0, self.samples, (total,), generator=draws)
        self.places: list[int] = places.sort().values.tolist()
        order = order.to(self.labels.device)
        self.epoch_inputs, self.epoch_labels = self.inputs[order], self.labels[order]
        self.seen = 0  # clean samples of this epoch so far

    def append(self, batch: Batch) -> Batch:
        """Return the epoch's next batch with the carriers that fall among its clean samples behind them."""
        begin = bisect_left(self.places, self.seen)
        self.seen += batch.clean
        end = bisect_left(self.places, self.seen)
        return batch.append(self.epoch_inputs[begin:end], self.epoch_labels[begin:end]) if end > begin else batch
