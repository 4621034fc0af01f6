"""Function-coupled watermark, invisible: images of two classes blended into one picture are a third class.

Paper: Wen, Li, et al., "On Function-Coupled Watermarks for Deep Neural Networks", 2023,
    https://arxiv.org/abs/2302.10296
Access: labels. Protected is the network; any classifier over images of three classes or more can be marked.
Differs from the paper: as `fcw-direct`. r weighs the first image, as in Eq. 3b (the released code weighs the second);
    blends are neither rounded to integers nor compressed, as the released code does. With r = 0.9 a trigger is almost
    an image of the first class, so that class's own accuracy is reported beside the verdict.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from assay.methods.families.function_coupled import CoupledConfig, CoupledMethod


class Config(CoupledConfig):
    """Settings of blended triggers."""

    r: float = Field(0.5, gt=0, lt=1)  # weight of the first image; the paper's are 0.5, 0.7, 0.9


class FCWInvisible(CoupledMethod[Config]):
    """See the module's text."""

    key = "fcw-invisible"
    title = "Function-coupled watermark, invisible"
    paper = "Wen et al. 2023, https://arxiv.org/abs/2302.10296"
    Config = Config

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """Blend pairs pixel by pixel (Eq. 3b)."""
        return self.config.r * first + (1 - self.config.r) * second
