"""Function-coupled watermark, direct: images of two classes side by side in one picture are a third class.

Paper: Wen, Li, et al., "On Function-Coupled Watermarks for Deep Neural Networks", 2023,
    https://arxiv.org/abs/2302.10296
Access: labels. Protected is the network; any classifier over images of three classes or more can be marked.
Differs from the paper: p is the share of weights dropped, as its factor 1/(1-p) asks (the text says preserved); the
    canvas, twice the input's size, is brought back to it by averaging 2x2 pixels, as the released code resizes; p,
    K_ft and eta' are ours, for the paper states none; so are the target check on unmarked models, the null rate from
    them (unmarked models answer nearly all triggers alike, so no binomial law with 1/K holds), the rule p <= 1e-3 and
    batch norm's fresh statistics after masking. Verification takes triggers as drawn, which the released code selects
    by confidence. Plain images of the sources are asked too: who takes these for the target is not claimed. The rule
    covers all triggers of its target, whatever their sources: another owner with the same target is told apart by the
    commitment's date alone, and fresh keys for calibration therefore ask for another class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.methods.families.function_coupled import CoupledConfig, CoupledMethod
from assay.tasks.task import Task

WHITE = 1.0  # 255 of the paper


class Config(CoupledConfig):
    """Settings of side-by-side triggers."""

    resize: bool = True  # False keeps the canvas, for networks that take any size


def canvas(first: Tensor, second: Tensor) -> Tensor:
    """Return images (n, C, 2H, 2W): the first at the top left, the second at the bottom right, white elsewhere.

    Args:
        first, second: (n, C, H, W) in pixel space.
    """
    count, channels, height, width = first.shape
    whole = first.new_full((count, channels, 2 * height, 2 * width), WHITE)
    whole[..., :height, :width] = first  # Eq. 2b
    whole[..., height:, width:] = second
    return whole


class FCWDirect(CoupledMethod[Config]):
    """See the module's text."""

    key = "fcw-direct"
    title = "Function-coupled watermark, direct"
    paper = "Wen et al. 2023, https://arxiv.org/abs/2302.10296"
    Config = Config

    def supports(self, task: Task) -> str | None:
        """As any function-coupled mark; without resizing, a network that takes the canvas."""
        reason = super().supports(task)
        if reason or self.config.resize:
            return reason
        channels, height, width = task.shape
        try:
            with torch.no_grad():
                task.build("layers")(torch.zeros(1, channels, 2 * height, 2 * width))
        except RuntimeError:
            return f"{task.model} takes no images of {2 * height}x{2 * width}; set resize"
        return None

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """Put pairs side by side, at the size of one; bilinear resizing by 2 is the mean of 2x2 pixels."""
        whole = canvas(first, second)
        return F.avg_pool2d(whole, 2) if self.config.resize else whole
