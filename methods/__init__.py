"""Watermarking methods, one file each; `METHODS` maps their keys to their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.methods.adi import Adi
from assay.methods.base import Method
from assay.methods.clean import Clean
from assay.methods.csp import CSP
from assay.methods.deepipr import DeepIPR
from assay.methods.fcw_direct import FCWDirect
from assay.methods.fcw_invisible import FCWInvisible
from assay.methods.greedy_residuals import GreedyResiduals
from assay.methods.ingrain import Ingrain
from assay.methods.null_embedding import NullEmbedding
from assay.methods.uchida import Uchida
from assay.methods.usp import USP

METHODS: Mapping[str, type[Method[Any]]] = {
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
