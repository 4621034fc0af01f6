"""Attacks on watermarked models, one file each; `ATTACKS` maps their keys to their classes."""

from __future__ import annotations

from collections.abc import Mapping

from attacks.base import Attack
from attacks.cross_verify import CrossVerify
from attacks.distill import Distill
from attacks.expand import Expand
from attacks.extract import Extract
from attacks.false_claim import FalseClaim
from attacks.fine_tune import FineTune
from attacks.forge import Forge
from attacks.neural_cleanse import NeuralCleanse
from attacks.neuron_prune import NeuronPrune
from attacks.none import NoAttack
from attacks.overwrite import Overwrite
from attacks.permute import Permute
from attacks.piracy import Piracy
from attacks.prune import Prune
from attacks.prune_retrain import PruneRetrain
from attacks.round import Round
from attacks.scale import Scale
from attacks.transfer import Transfer

ATTACKS: Mapping[str, type[Attack]] = {
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
