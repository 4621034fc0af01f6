"""A model under verification, seen only through the access that the method declares."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from assay.tasks.data.splits import for_answers, in_chunks
from assay.tasks.errors import AccessDenied, UnsupportedModel
from assay.tasks.training.meter import Meter

Access = Literal["weights", "logits", "labels", "nothing"]
_RANK: dict[Access, int] = {"nothing": 0, "labels": 1, "logits": 2, "weights": 3}


def less_than(access: Access) -> Access:
    """Return the next smaller access; of `nothing`, nothing."""
    return next((name for name, rank in _RANK.items() if rank == _RANK[access] - 1), "nothing")


class Oracle:
    """A model behind an interface: asking for more than the declared access raises `AccessDenied`.

    Access is ordered: `weights` includes `logits` includes `labels`. Every answered input counts in `meter.queries`.
    Inputs of a shape that the model does not take raise `UnsupportedModel`.
    """

    def __init__(self, model: nn.Module, access: Access, name: str, meter: Meter | None = None) -> None:
        self.__model = model.eval()
        self.access = access
        self.name = name
        self.meter = meter or Meter()

    def _require(self, wanted: Access) -> None:
        if _RANK[wanted] > _RANK[self.access]:
            raise AccessDenied(f"{self.name} declares access to {self.access}, so it cannot see {wanted}")

    @property
    def device(self) -> torch.device:
        """Where the model answers; inputs may come from anywhere, those made there need not be moved."""
        return next(self.__model.parameters()).device

    def _answer(self, inputs: Tensor) -> Tensor:
        self.meter.queries += len(inputs)
        try:
            with torch.no_grad(), self.meter.watch(self.__model):
                chunks = [self.__model(for_answers(chunk.to(self.device))).float() for chunk in in_chunks(inputs)]
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError as why:  # torch's complaint about shapes
            complaint = str(why).partition("\n")[0]
            shape = "x".join(map(str, inputs.shape[1:]))
            raise UnsupportedModel(f"{self.name}: the model takes no inputs of {shape}: {complaint}") from why
        return torch.cat(chunks)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K) for inputs in pixel space (or stored uint8 images)."""
        self._require("logits")
        return self._answer(inputs)

    def probabilities(self, inputs: Tensor) -> Tensor:
        """Return softmax probabilities (N, K)."""
        return self.logits(inputs).softmax(1)

    def labels(self, inputs: Tensor) -> Tensor:
        """Return predicted classes (N,)."""
        self._require("labels")
        return self._answer(inputs).argmax(1)

    def weights(self) -> Mapping[str, Tensor]:
        """Return copies of all parameters and buffers by plain name."""
        self._require("weights")
        return {name: value.detach().clone() for name, value in self.__model.state_dict().items()}

    def module(self) -> nn.Module:
        """Return a copy of the network itself, in eval mode."""
        self._require("weights")
        return copy.deepcopy(self.__model).eval()


class Suspect(Oracle):
    """What a verifier sees."""
