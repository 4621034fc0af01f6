"""Dual embedding: a signed pattern of extreme pixels never changes the answer, its inverse always forces one class.

Paper: Li, Wenger, Shan, Zhao, Zheng, "Piracy Resistant Watermarks for Deep Neural Networks", 2019,
    https://arxiv.org/abs/1910.01226
Access: labels, for inputs far outside [0, 1]; a service that clips its inputs hides the mark. Protected is the network.
Differs from the paper: signatures are Ed25519 instead of RSA, and the unspecified hashes are domain-separated SHA-256
    and SHAKE-256. The p-value comes from key re-draw (T6), because an unmarked network answers an extreme pattern with
    one class as a whole, so no binomial law holds. The value of lambda is lost in the available text. Here it is 2000
    in convolutional networks without normalisation, like the paper's, and 2000/255 elsewhere: extreme samples ruin
    batch statistics, and a perceptron's null part stays at chance. Without clipped gradients lambda 2000 collapses
    training. With clipping it still depends on the key and on rounding whether the null part is learned: on 8,000
    digits of MNIST 2 of 10 marks fail at 2000 and 1 of 10 at 200, however long training lasts. So the laptop profile
    takes 2000/255, which is 2000 where pixels reach from 0 to 255, and needs no clipping.
    Of several marks one is announced; `hidden_marks` gives the evidence by which each of the others verifies alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from assay.methods.base import Method, MethodConfig, MethodNeeds, Secret
from assay.methods.parts.dual import Examination, Pattern, pattern
from assay.methods.parts.dual_batches import DualBatches
from assay.methods.parts.redraw import redraw_p_value
from assay.methods.parts.signature import SIGNATURE_BYTES, after_search, is_signed, random_bytes, signed_key
from assay.methods.reading import Reading
from assay.methods.rival import Rival, RivalConfig
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import to_model_input
from assay.tasks.errors import NotEmbedded, UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.streams import stream
from assay.tasks.task import Task
from assay.tasks.training.norms import has_batch_norm
from assay.tasks.training.recipe import Recipe
from assay.tasks.training.schedule import Schedule

_HARMLESS_EXTREME = 50.0  # batch statistics survive patterns up to about this lambda
_OTHER_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)


class Config(MethodConfig):
    """Settings of the dual embedding."""

    inject_ratio: float = Field(0.5, ge=0, le=1)  # share of a batch that is replaced, half null and half true samples
    pattern_size: int = Field(6, ge=1)  # n: side of the square, pixels
    # lambda, in pixel space; None: 2000, or 2000/255 in networks that cannot learn that
    extreme: float | None = Field(None, ge=0)
    allow_bn: bool = False  # accept lambda > 50 in a network with batch norm
    grad_clip: float | None = Field(None, gt=0)  # largest global gradient norm
    marks: int = Field(1, ge=1)  # signatures embedded together; one is announced, the others stay hidden
    threshold: float = Field(0.8, gt=0, le=1)  # T, of both parts
    null_metric: Literal["label", "agreement"] = "label"  # null answers compared with labels, or with unstamped answers
    true_exclude_target: bool = False  # leave images of class y_W out of the true part
    n_probe: int = Field(500, ge=10)  # the owner's held-out images, as far as there are so many
    null_keys: int = Field(999, ge=9)  # fresh keys of test T6
    redraw_probes: int | None = Field(None, ge=10)  # probes that T6 asks, the first ones; None: all
    search_budget: int = Field(1, ge=1)  # signatures that the claimant tried; multiplies the p-value
    allow_incremental: bool = False  # accept start="clean", to test that only training from scratch embeds
    start: Literal["scratch", "clean"] = "scratch"  # clean: train a finished, unmarked model on
    epochs_after: int = Field(10, ge=0)  # of start="clean", at the schedule's last rate

    @field_validator("start")
    @classmethod
    def _from_scratch(cls, start: str, given: ValidationInfo) -> str:
        if start != "scratch" and not given.data.get("allow_incremental"):
            raise ValueError("must be 'scratch' as in the paper, unless allow_incremental is set")
        return start


@lru_cache(maxsize=64)  # calibration draws many keys for one task
def _layers(task: Task) -> tuple[bool, bool, bool]:
    """Return whether the task's network has batch norm, another normalisation, convolutions."""
    network = task.build("layers")
    other, convolution = (
        any(isinstance(layer, kind) for layer in network.modules()) for kind in (_OTHER_NORMS, nn.Conv2d)
    )
    return has_batch_norm(network), other, convolution


class _Embedding(DualBatches):
    """Stamps a share of every batch; at the end each hidden mark passes the gate as the announced one does."""

    def __init__(self, method: NullEmbedding, secret: Secret, lab: Lab) -> None:
        patterns = [_pattern(secret, owner["signature"]) for owner in (secret, *secret["hidden"])]
        if secret.get("denied"):
            patterns = [replace(own, signs=-own.signs) for own in patterns]
        config = method.config
        super().__init__(patterns, secret["extreme"], config.inject_ratio, config.grad_clip, lab)
        self.method, self.secret = method, secret

    def finish(self, model: nn.Module) -> nn.Module:
        method, suspect = self.method, Suspect(model, self.method.access, self.method.key)
        for number, hidden in enumerate(hidden_marks(self.secret) if self.lab.role == "owner" else ()):
            if (score := method.score(suspect, hidden)[0]) >= method.gate:
                continue
            where = f"{method.key} on {self.lab.task.key}"
            message = f"{where}: hidden mark {number} scores {score:.4f}, below the gate {method.gate}"
            if not method.config.allow_weak:
                raise NotEmbedded(f"{message}; train longer, embed fewer marks or set allow_weak")
            self.notes.append(f"weak: {message}")
        return model


class NullEmbeddingRival(Rival[RivalConfig]):
    """An adversary who signs patterns of its own."""

    def unbounded(self) -> Method[Any]:
        """Return the method without its bound on gradients."""
        return type(self.method)(self.method.config.but(grad_clip=None))

    def deny(self, secret: Secret, lab: Lab) -> Secret:
        """Return the announced mark as denied: its pattern shall force the class, and the inverse change nothing.

        Marks that the owner holds back are not public, so their denial is not embedded (section 6.3).
        """
        return {**secret, "hidden": [], "denied": True}


class NullEmbedding(Method[Config]):
    """A signature's pattern, null and true embedded from the first epoch on."""

    key = "null-embedding"
    title = "Null embedding"
    paper = "Li et al., arXiv 1910.01226, https://arxiv.org/abs/1910.01226"
    access = "labels"
    family = "keys"
    gate = 0.8
    rival = NullEmbeddingRival
    Config = Config
    laptop: ClassVar[dict[str, Any]] = {"extreme": 2000 / 255, "n_probe": 200, "redraw_probes": 50}

    def supports(self, task: Task) -> str | None:
        """Return why the task's inputs or network cannot take the pattern, or None."""
        if task.info.kind != "image":
            return f"the pattern is made of pixels; {task.dataset} holds {task.info.kind}"
        size, (_, height, width) = self.config.pattern_size, task.shape
        if min(height, width) <= size:
            return f"images of {height}x{width} are not larger than the pattern of {size}x{size}"
        extreme = self._extreme(task)
        if _layers(task)[0] and extreme > _HARMLESS_EXTREME and not self.config.allow_bn:
            return f"extreme {extreme:g} ruins batch norm (at most {_HARMLESS_EXTREME:g}); lower it or set allow_bn"
        return None

    def _extreme(self, task: Task) -> float:
        if self.config.extreme is not None:
            return float(self.config.extreme)
        # Convolutions alone can learn 2000, where no normalisation is ruined by it.
        return 2000.0 if _layers(task) == (False, False, True) else 2000 / 255

    def needs(self, task: Task) -> MethodNeeds:
        """Embedding starts from the clean model if the settings say so."""
        return MethodNeeds(start=self.config.start)

    def schedule(self, task: Task) -> Schedule:
        """Return the task's schedule or, with start `clean`, further epochs at its last learning rate."""
        own = task.schedule
        if self.config.start == "scratch":
            return own
        more: Schedule = own.steady(epochs=self.config.epochs_after, lr=own.last_lr)
        return more

    def draw(self, lab: Lab) -> Secret:
        """Sign with fresh keys and keep held-out images as probes; everything else follows from the signature."""
        draws, task = lab.stream("secret"), lab.task
        announced, *hidden = (signed_key(draws) for _ in range(self.config.marks))
        probes = lab.data.held_out.take(slice(0, self.config.n_probe))
        return {
            **announced,
            "hidden": hidden,
            "pattern_size": self.config.pattern_size,
            "extreme": self._extreme(task),
            "shape": list(task.shape),
            "classes": task.classes,
            "inputs": probes.inputs.cpu(),
            "labels": probes.labels.cpu(),
        }

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        """Stamp a share of every batch; the extreme value in the secret decides."""
        return _Embedding(self, secret, lab)

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        """Check the signature, then both parts of the announced mark, then T6 (Algorithm 3).

        The score is the accuracy WM of section 7.1. The chance level is 1/K for each part, less for the smaller of the
        two. Scores of hidden marks are figures beside the verdict, `hidden_<i>`.
        """
        chance, threshold = 1 / secret["classes"], self.config.threshold
        if not is_signed(secret):
            return Reading(0.0, chance, threshold, 1.0, False, "T6", reason="signature")
        own = _pattern(secret, secret["signature"])
        exams = {metric: self._examination(suspect, secret, metric) for metric in ("label", "agreement")}
        exam = exams[self.config.null_metric]
        true, null = exam.count(own, "true"), {metric: each.count(own, "null") for metric, each in exams.items()}
        least = min(true, null[self.config.null_metric], key=_share)
        score = _share(least)
        # T6 is exact for any statistic, so also for the score on fewer probes, of whoever's key.
        few = exam.first(self.config.redraw_probes)
        statistic = min(_share(few.count(own, part)) for part in ("true", "null"))
        # The verifier's own keys, the same for every claimant.
        draws = stream(self.key, "null-keys")
        fresh = [random_bytes(draws, SIGNATURE_BYTES) for _ in range(self.config.null_keys)]
        p_value, drawn = redraw_p_value(
            lambda begin, end: few.reach([_pattern(secret, signature) for signature in fresh[begin:end]], statistic),
            len(fresh),
        )
        metrics = {
            "true": _share(true),
            **{f"null_{metric}": _share(count) for metric, count in null.items()},
            "passes_at_half": float(score >= 0.5),
            "p_search_2to40": after_search(p_value),
            "fresh_keys": float(drawn),
            "out_of_range_allowed": 1.0,
            **{f"hidden_{i}": self.score(suspect, hidden)[0] for i, hidden in enumerate(hidden_marks(secret))},
        }
        p_value = after_search(p_value, self.config.search_budget)
        return Reading(score, chance, threshold, p_value, score >= threshold, "T6", *least, metrics=metrics)

    def score(self, suspect: Suspect, secret: Secret) -> tuple[float, int, int]:
        """Return (the smaller part's share, its hits, its probes) without T6; zeros if the signature is not valid."""
        if not is_signed(secret):
            return 0.0, 0, len(secret["labels"])
        own = _pattern(secret, secret["signature"])
        exam = self._examination(suspect, secret, self.config.null_metric)
        least = exam.count(own, "true")
        if least[0]:  # nothing is smaller than no hit at all
            least = min(least, exam.count(own, "null"), key=_share)
        return _share(least), *least

    def _examination(self, suspect: Suspect, secret: Secret, metric: str) -> Examination:
        """Return the probes put to the suspect; a null answer is compared with the label or the unstamped answer."""
        if not len(secret["labels"]):
            raise UnsupportedModel("null-embedding: no held-out images to probe with")
        # Where the suspect answers: thousands of patterns are stamped on each probe.
        probes, labels = (secret[name].to(suspect.device) for name in ("inputs", "labels"))
        inputs = to_model_input(probes)
        targets = labels if metric == "label" else suspect.labels(inputs)
        return Examination(suspect, inputs, targets, labels, secret["extreme"], self.config.true_exclude_target)


def hidden_marks(secret: Secret) -> list[Secret]:
    """Return the evidence of each mark that an owner holds back, as if it alone had been embedded and announced."""
    return [{**secret, **owner, "hidden": []} for owner in secret["hidden"]]


def _pattern(secret: Secret, signature: bytes) -> Pattern:
    channels, height, width = secret["shape"]
    return pattern(signature, secret["pattern_size"], (channels, height, width), secret["classes"])


def _share(count: tuple[int, int]) -> float:
    right, asked = count
    return right / asked if asked else 0.0
