"""Rounding: keep k decimal digits of every parameter, so that marks in the lower ones are gone.

Paper: the rounding attack of Yang, Dang, Chang, "Effectiveness of Distillation Attack and Countermeasure on Neural
    Network Watermarking" (ingrain), https://arxiv.org/abs/1906.06046; its table 7 (1 to 6 digits), main tables (2)
Access: weights; no data.
Differs from the paper: "by d digits" could mean digits removed, but in the tables 1 hurts most, so digits are kept. The
    rounding is in double precision, half to even; 14 digits change nothing.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.tasks.lab import Lab


class Config(AttackConfig):
    """Settings of rounding."""

    digits: int = Field(2, ge=0, le=15)  # k: behind the decimal point
    buffers: bool = False  # round the running statistics too


def round_decimal(values: Tensor, digits: int) -> Tensor:
    """Return the nearest multiples of 10^-k, half to even, in the precision of `values`."""
    factor = 10.0**digits
    return ((values.double() * factor).round_() / factor).to(values.dtype)


class Round(Attack[Config]):
    """Round every parameter to a number of decimal digits."""

    key = "round"
    title = "Decimal rounding"
    source = "Yang, Dang, Chang (ingrain), table 7"
    access = "weights"
    cheap = True
    identity: ClassVar = {"digits": 14}
    Config = Config

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the rounded copy."""
        model = victim.module()
        tensors = [*model.parameters(), *(model.buffers() if self.config.buffers else ())]
        with torch.no_grad():
            for tensor in tensors:
                if tensor.is_floating_point():
                    tensor.copy_(round_decimal(tensor, self.config.digits))
        return Outcome(model)
