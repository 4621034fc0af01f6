"""Reverse-engineering triggers: for every candidate the smallest mask and pattern that send all images to its class.

All candidates are optimised at once: masks (J, 1, H, W) and patterns (J, C, H, W) stamp one batch of b clean images,
the network answers the J·b results, and since no candidate's loss sees another's mask, one backward pass and one Adam
serve them all. A candidate that stalls leaves the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from assay.attacks.base import AttackConfig
from assay.tasks.data.splits import Labelled
from assay.tasks.lab import Lab
from assay.tasks.training.trainer import predict

_RAISE, _LOWER = 2.0, 2.0**1.5  # factors of the penalty's schedule
_PROGRESS = 0.99  # a norm that has not fallen by a hundredth has stalled; the original counts any fall
_UNIT = 1.4826  # makes the median absolute deviation of a normal law its standard deviation


class SearchConfig(AttackConfig):
    """Settings of the search."""

    samples: int = Field(1000, ge=2)  # clean images of the attacker's that it uses
    passes: int = Field(100, ge=0)  # over the samples, at most; 100 is ours, the original allows 1,000
    batch_size: int = Field(32, ge=1)  # clean images that a step shows under every candidate
    step_size: float = Field(0.1, ge=0)  # Adam's, with betas 0.5 and 0.9
    penalty: float = Field(1e-3, ge=0)  # lambda at the start, of the mask's L1 norm in pixels
    goal: float = Field(0.99, gt=0, le=1)  # share of images that a trigger must send to its class
    patience: int = Field(5, ge=1)  # passes above (below) the goal until lambda rises (falls)
    stall: int = Field(25, ge=1)  # passes without a smaller mask until a candidate is done
    pattern_range: Literal["pixels", "unbounded"] = "pixels"  # unbounded: adaptive to marks of extreme pixels


@dataclass(frozen=True)
class Trigger:
    """A stamp and the class to which it sends images: mask (1, H, W) in [0, 1], pattern (C, H, W) in pixel space."""

    target: int
    mask: Tensor
    pattern: Tensor

    def stamp(self, inputs: Tensor) -> Tensor:
        """Return float32 images (N, C, H, W) under the trigger."""
        return blend(inputs, self.mask, self.pattern)

    def success(self, model: nn.Module, images: Tensor) -> float:
        """Return the share of clean images (N, C, H, W), float32, that it sends to its class; 0 if there are none."""
        if not len(images):
            return 0.0
        answers = predict(model, self.stamp(images)).argmax(1)
        return float((answers == self.target).float().mean())


@dataclass(frozen=True)
class Triggers:
    """What a search found, one per candidate.

    Attributes:
        targets: the class that each aims at (J,).
        masks: float32 (J, 1, H, W) in [0, 1].
        patterns: float32 (J, C, H, W), in pixel space.
        success: share of its images that each sends to its class (J,).
        passes: how many passes each took (J,).
    """

    targets: Tensor
    masks: Tensor
    patterns: Tensor
    success: Tensor
    passes: Tensor

    @property
    def norms(self) -> Tensor:
        """L1 norms of the masks (J,), in pixels, on the CPU in double precision."""
        return self.masks.double().sum((1, 2, 3)).cpu()

    def one(self, which: int) -> Trigger:
        """Return one of them."""
        return Trigger(int(self.targets[which]), self.masks[which], self.patterns[which])


@dataclass(frozen=True)
class Anomaly:
    """Which mask is too small to be natural.

    Attributes:
        indices: anomaly index per class (K,).
        flagged: classes with an index above the threshold and a norm below the median.
        suspect: class of the smallest norm; its index is the model's.
        median, deviation: of the norms; the deviation is the median absolute one, not rescaled.
    """

    indices: Tensor
    flagged: tuple[int, ...]
    suspect: int
    median: float
    deviation: float

    @property
    def index(self) -> float:
        """The model's anomaly index."""
        return float(self.indices[self.suspect])


def blend(inputs: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Return A(x) = (1 - m) x + m p, in pixel space; masks are shared over the channels."""
    return (1 - mask) * inputs + mask * pattern


def anomaly(norms: Tensor, threshold: float) -> Anomaly:
    """Return AI_t = |n_t - M| / (1.4826 MAD) for norms (K,); all 0 where the norms hardly differ (MAD < 1e-6 M)."""
    norms = norms.double()
    median = norms.quantile(0.5)
    away = (norms - median).abs()
    deviation = away.quantile(0.5)
    indices = away / (_UNIT * deviation) if deviation > 1e-6 * median else torch.zeros_like(norms)
    flagged = torch.nonzero((indices > threshold) & (norms < median)).flatten().tolist()
    return Anomaly(indices, tuple(flagged), int(norms.argmin()), float(median), float(deviation))


def search_triggers(
    model: nn.Module,
    data: Labelled,
    targets: Tensor,
    config: SearchConfig,
    lab: Lab,
    sources: Tensor | None = None,
    *,
    bf16: bool = False,
) -> Triggers:
    """Find the smallest trigger of every candidate.

    Args:
        model: in eval mode; its parameters ask for no gradients, and do not change.
        data: clean samples on the model's device.
        targets: class that each candidate aims at (J,).
        config: the search's settings.
        lab: streams `trigger`, `order`; sample passes are counted.
        sources: class whose images alone each candidate stamps (J,); None: all images.
        bf16: run the network under autocast; masks, patterns and their optimiser stay in float32.
    """
    search = _Search(model, data, targets, config, lab, sources, bf16)
    with lab.meter.watch(model):
        for number in range(config.passes):
            if not len(search.active):
                break
            search.run(number)
        return search.result()


class _Search:
    def __init__(
        self,
        model: nn.Module,
        data: Labelled,
        targets: Tensor,
        config: SearchConfig,
        lab: Lab,
        sources: Tensor | None,
        bf16: bool,
    ) -> None:
        self.model, self.config, self.lab, self.bf16 = model, config, lab, bf16
        self.device = data.labels.device
        self.images = data.model_inputs()
        self.targets = targets.to(self.device)
        if sources is None:
            self.pools, self.pool_of = [torch.arange(len(data))], torch.zeros(len(targets), dtype=torch.int64)
        else:
            classes, self.pool_of = sources.cpu().unique(return_inverse=True)
            self.pools = [torch.nonzero(data.labels.cpu() == label).flatten() for label in classes]
        self.steps = max(1, sum(map(len, self.pools)) // len(self.pools) // config.batch_size)
        count, (channels, *size) = len(targets), self.images.shape[1:]
        draws = lab.stream("trigger")
        mask, pattern = (torch.rand(count, depth, *size, generator=draws) for depth in (1, channels))
        # A leaf per candidate: Adam leaves those without a gradient alone, so a candidate that is done costs nothing.
        self.raw_masks = [_leaf(each.mul(2).sub(1).mul(0.999).atanh(), self.device) for each in mask]
        start = pattern.mul(2).sub(1).mul(0.999).atanh() if config.pattern_range == "pixels" else pattern - 0.5
        self.raw_patterns = [_leaf(each, self.device) for each in start]
        leaves = [*self.raw_masks, *self.raw_patterns]
        self.adam = torch.optim.Adam(leaves, config.step_size, betas=(0.5, 0.9), foreach=True)
        self.active = torch.arange(count)
        self.schedule = _Penalties(count, config)
        self.best_masks, self.best_patterns = self._current(list(range(count)))
        # As many images at a time as the device likes: a core's cache holds the activations of some hundred.
        at_once = 96 * torch.get_num_threads() if self.device.type == "cpu" else 16_384
        self.chunk = max(1, at_once // config.batch_size)

    def _current(self, which: list[int]) -> tuple[Tensor, Tensor]:
        """Return masks and patterns of some candidates as the network sees them."""
        masks = torch.stack([self.raw_masks[j] for j in which]).tanh() / 2 + 0.5
        raw = torch.stack([self.raw_patterns[j] for j in which])
        # The hyperbolic sine is the identity near 0 and reaches thousands within a hundred of Adam's steps.
        patterns = raw.tanh() / 2 + 0.5 if self.config.pattern_range == "pixels" else raw.sinh() + 0.5
        return masks, patterns

    def _order(self, number: int) -> Tensor:
        """Return positions of clean images (pools, steps, b): shuffled, and repeated where a pool is too small."""
        draws, wanted = self.lab.stream("order", number), self.steps * self.config.batch_size
        rows = []
        for pool in self.pools:
            shuffled = pool[torch.randperm(len(pool), generator=draws)]
            rows.append(shuffled.repeat(-(-wanted // len(pool)))[:wanted])
        return torch.stack(rows).view(len(rows), self.steps, -1)

    def run(self, number: int) -> None:
        """Make one pass over the samples, then move the penalties and drop the candidates that stall."""
        order = self._order(number).to(self.device)
        hits = torch.zeros(len(self.targets), device=self.device)
        penalties = self.schedule.penalty.float().to(self.device)
        chunks = self.active.split(self.chunk)
        for step in range(self.steps):
            self.adam.zero_grad(set_to_none=True)
            for which in chunks:
                hits[which] += self._descend(which, order[:, step], penalties[which])
            self.adam.step()
        shown = self.steps * order.shape[2]
        self._close(number, hits.cpu() / shown)

    def _descend(self, which: Tensor, order: Tensor, penalties: Tensor) -> Tensor:
        """Add the gradients of CE(V(A(x)), t) + lambda |m| of some candidates; return how often each reached t."""
        masks, patterns = self._current(which.tolist())
        clean = self.images[order[self.pool_of[which]]]  # (k, b, C, H, W)
        stamped = blend(clean, masks[:, None], patterns[:, None])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(stamped.flatten(0, 1)).float()
        wanted = self.targets[which].repeat_interleave(clean.shape[1])
        missed = F.cross_entropy(logits, wanted, reduction="sum") / clean.shape[1]
        (missed + (penalties * masks.sum((1, 2, 3))).sum()).backward()
        return (logits.argmax(1) == wanted).view(len(which), -1).sum(1)

    def _close(self, number: int, success: Tensor) -> None:
        """Keep masks that are the smallest so far among those that reach the goal."""
        with torch.no_grad():
            masks, patterns = self._current(self.active.tolist())
        better = self.schedule.update(self.active, success[self.active], masks.sum((1, 2, 3)).cpu().double())
        self.best_masks[self.active[better]] = masks[better]
        self.best_patterns[self.active[better]] = patterns[better]
        self.active = self.active[~self.schedule.done[self.active]]

    def result(self) -> Triggers:
        """Return the best triggers, measured once more on all images that they are for."""
        masks, patterns = self.best_masks.detach(), self.best_patterns.detach()
        found = Triggers(self.targets, masks, patterns, torch.zeros(len(masks)), self.schedule.passes)
        for j, pool in enumerate(self.pool_of.tolist()):
            images = self.images[self.pools[pool].to(self.device)]
            found.success[j] = found.one(j).success(self.model, images)
        return found


class _Penalties:
    """Lambda of every candidate, by the original's rule: up while the goal is met, down while it is missed."""

    def __init__(self, count: int, config: SearchConfig) -> None:
        self.config = config
        self.penalty = torch.full((count,), config.penalty, dtype=torch.float64)
        self.best = torch.full((count,), torch.inf, dtype=torch.float64)  # smallest norm that reached the goal
        self.bar = self.best.clone()  # the norm from which progress is counted
        self.above, self.below, self.idle, self.passes = torch.zeros(4, count, dtype=torch.int64)
        self.raised, self.lowered, self.done = torch.zeros(3, count, dtype=torch.bool)

    def update(self, who: Tensor, success: Tensor, norms: Tensor) -> Tensor:
        """Take a pass's results of some candidates; return which of them have their smallest mask so far (k,)."""
        config, met = self.config, success >= self.config.goal
        self.passes[who] += 1
        better = (met & (norms < self.best[who])) | self.best[who].isinf()  # something is kept from the first pass on
        self.best[who] = torch.where(met & better, norms, self.best[who])
        self.above[who] = torch.where(met, self.above[who] + 1, 0)
        self.below[who] = torch.where(met, 0, self.below[who] + 1)
        up, down = self.above[who] >= config.patience, self.below[who] >= config.patience
        self.penalty[who[up]] *= _RAISE
        self.penalty[who[down]] /= _LOWER
        self.above[who[up]], self.below[who[down]] = 0, 0
        self.raised[who] |= up
        self.lowered[who] |= down
        progress = self.best[who] < _PROGRESS * self.bar[who]
        self.bar[who] = torch.where(progress, self.best[who], self.bar[who])
        self.idle[who] = torch.where(progress | self.best[who].isinf(), 0, self.idle[who] + 1)
        self.done[who] = (self.idle[who] >= config.stall) & self.raised[who] & self.lowered[who]
        return better


def _leaf(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device).contiguous().requires_grad_(True)
