"""Attacks on watermarked models, one file each; `ATTACKS` maps their keys to their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.attacks.base import Attack
from assay.attacks.cross_verify import CrossVerify
from assay.attacks.distill import Distill
from assay.attacks.expand import Expand
from assay.attacks.extract import Extract
from assay.attacks.false_claim import FalseClaim
from assay.attacks.fine_tune import FineTune
from assay.attacks.forge import Forge
from assay.attacks.neural_cleanse import NeuralCleanse
from assay.attacks.neuron_prune import NeuronPrune
from assay.attacks.none import NoAttack
from assay.attacks.overwrite import Overwrite
from assay.attacks.permute import Permute
from assay.attacks.piracy import Piracy
from assay.attacks.prune import Prune
from assay.attacks.prune_retrain import PruneRetrain
from assay.attacks.round import Round
from assay.attacks.scale import Scale
from assay.attacks.transfer import Transfer

ATTACKS: Mapping[str, type[Attack[Any]]] = {
    cls.key: cls
    for cls in (
        CrossVerify,
        Distill,
        Expand,
        Extract,
        FalseClaim,
        FineTune,
        Forge,
        NeuralCleanse,
        NeuronPrune,
        NoAttack,
        Overwrite,
        Permute,
        Piracy,
        Prune,
        PruneRetrain,
        Round,
        Scale,
        Transfer,
    )
}  # fmt: skip
