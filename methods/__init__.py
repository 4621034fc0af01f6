"""Watermarking methods, one file each; `METHODS` maps their keys to their classes."""

from __future__ import annotations

from collections.abc import Mapping

from methods.adi import Adi
from methods.base import Method
from methods.clean import Clean
from methods.csp import CSP
from methods.deepipr import DeepIPR
from methods.fcw_direct import FCWDirect
from methods.fcw_invisible import FCWInvisible
from methods.greedy_residuals import GreedyResiduals
from methods.ingrain import Ingrain
from methods.null_embedding import NullEmbedding
from methods.uchida import Uchida
from methods.usp import USP

METHODS: Mapping[str, type[Method]] = {
    cls.key: cls
    for cls in (
        Adi,
        CSP,
        Clean,
        DeepIPR,
        FCWDirect,
        FCWInvisible,
        GreedyResiduals,
        Ingrain,
        NullEmbedding,
        USP,
        Uchida,
    )
}  # fmt: skip
