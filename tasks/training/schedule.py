"""A training schedule as data: optimiser, learning rate and its drops, batch, epochs, augmentation, numerics."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from assay.tasks.errors import BadInput, nearest


class Frozen(BaseModel):
    """Base of every configuration: frozen, strict, no unknown keys; the only place that states a default."""

    # Infinities have no JSON form, and every configuration is part of a key.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def but(self, **changes: Any) -> Any:
        """Return a validated copy with some fields changed."""
        return type(self).model_validate({**self.model_dump(), **changes})


# How the rate moves, as long as it does not; drops are shares of the epochs, all else counts epochs.
_STEADY: Mapping[str, Any] = {"drops": (), "drop_every": 0, "decay": 0.0, "warmup": 0.0, "anneal": "none"}
# Fields that came later are left out of the canonical form while neutral: what was stored before them keeps its key.
_LATER = {**{key: _STEADY[key] for key in ("drop_every", "decay", "warmup", "anneal")}, "compile": False}


class Schedule(Frozen):
    """How a network is trained; each field changes results, so all of them are part of a stage's key."""

    epochs: int = Field(8, ge=0)
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "adadelta"] = "adam"
    lr: float = Field(1e-3, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # sgd only
    nesterov: bool = False  # sgd only
    weight_decay: float = Field(0.0, ge=0)
    drops: tuple[float, ...] = ()  # shares of the epochs after which the rate falls; from 1 on for methods that go on
    drop_factor: float = Field(0.1, gt=0, le=1)
    drop_every: int = Field(0, ge=0)  # epochs after which the rate falls by drop_factor again and again; 0: never
    decay: float = Field(0.0, ge=0)  # the rate is divided by 1 + decay * epochs passed
    warmup: float = Field(0.0, ge=0, lt=1)  # share of the epochs in which the rate rises, linearly from a tenth
    anneal: Literal["none", "linear", "cosine"] = "none"  # way to 0 in what follows the warm-up
    augment: Literal["none", "crop", "crop-flip"] = "none"  # crop: random shift by at most 4 pixels
    precision: Literal["fp32", "bf16", "auto"] = "fp32"  # bf16: autocast; auto: bf16 where the device has units for it
    channels_last: bool = False
    compile: bool = False  # torch.compile: pays off in long trainings; draws dropout in an order of its own

    @model_serializer(mode="wrap")
    def _canonical(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if k not in _LATER or v != _LATER[k]}

    def lr_at(self, epoch: int, fraction: float = 0.0) -> float:
        """Return the learning rate of `epoch`, counted from 0, when `fraction` of it, in [0, 1), has passed.

        Drops and decay take hold between epochs; warm-up and annealing move the rate from step to step.
        """
        passed = sum(epoch >= round(share * self.epochs) for share in self.drops)
        passed += epoch // self.drop_every if self.drop_every else 0
        return self.lr * float(self.drop_factor**passed) / (1 + self.decay * epoch) * self._shape(epoch + fraction)

    def _shape(self, time: float) -> float:
        """Return the factor of warm-up and annealing after `time` epochs."""
        rise = self.warmup * self.epochs
        if time < rise:
            return 0.1 + 0.9 * time / rise
        rest = min((time - rise) / max(self.epochs - rise, 1e-9), 1.0)
        return {"none": 1.0, "linear": 1 - rest, "cosine": (1 + math.cos(math.pi * rest)) / 2}[self.anneal]

    @property
    def by_step(self) -> bool:
        """Whether the rate moves within an epoch."""
        return self.warmup > 0 or self.anneal != "none"

    @property
    def last_lr(self) -> float:
        """The learning rate at the start of the last epoch."""
        return self.lr_at(max(self.epochs - 1, 0))

    def steady(self, **changes: Any) -> Any:
        """Return a validated copy whose rate never moves, with other fields changed (`drops` among them, if wanted)."""
        return self.but(**{**_STEADY, **changes})


M = TypeVar("M", bound=BaseModel)
Locate = Callable[[tuple[int | str, ...]], str]


def parse(model: type[M], values: Mapping[str, Any], where: str = "", locate: Locate | None = None) -> M:
    """Validate plain values, as YAML or JSON gives them, strictly: lists become tuples, "8" is no integer.

    Args:
        model: the configuration class.
        values: fields by name.
        where: file and key, opens each line of an error.
        locate: returns what opens a line instead, from the path of the faulty value.

    Raises:
        BadInput: one line per fault, with the field, what was found, what is allowed and the nearest field.
    """
    try:
        text = json.dumps(dict(values))
    except TypeError as why:
        where = locate(()) if locate else where
        raise BadInput(f"{prefix(where)}only numbers, strings, lists and mappings are allowed: {why}") from None
    try:
        return model.model_validate_json(text)
    except ValidationError as faults:
        raise explain(faults, model, where, locate) from None


def explain(faults: ValidationError, model: type[BaseModel], where: str = "", locate: Locate | None = None) -> BadInput:
    """Turn pydantic's error into ours: one line per fault, every fault; `where` and `locate` as `parse` takes them."""
    lines = []
    for fault in faults.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            allowed = sorted(_fields_at(model, fault["loc"][:-1]))
            name = str(fault["loc"][-1])
            text = f"unknown field {path!r}{nearest(name, allowed)} (allowed: {', '.join(allowed) or 'none'})"
        elif fault["type"] == "missing":
            text = f"field {path!r} is missing"
        else:
            must = re.sub(r"^Input should be", "must be", fault["msg"])
            must = re.sub(r"^Value error, ", "", must).replace("a valid array", "a list")
            choices = re.findall(r"'([^']*)'", must) if fault["type"] == "literal_error" else []
            hint = nearest(fault["input"], choices) if isinstance(fault["input"], str) else ""
            text = f"{path + ': ' if path else ''}found {_short(fault['input'])}, {must}{hint}"
        opening = locate(fault["loc"]) if locate else where
        lines.append(prefix(opening) + " ".join(text.split()))
    return BadInput("\n".join(lines))


def prefix(where: str) -> str:
    """Return `where: `, however it was punctuated, or nothing."""
    return f"{where.rstrip(': ')}: " if where else ""


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Return the field names of the model that lies at `path` inside `model`."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return set()
        model = field.annotation
    return set(model.model_fields)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
