"""The published claims as executable checks on a sweep's rows and curves; one file per paper.

`marks` and `expressions` have the words in which claims are written, `settings` the tasks and attacks that they share,
`verdict` what becomes of them. Only rows, curves and the published numbers are read.
"""

from __future__ import annotations

from typing import Final

from assay.results.claims import s0, s1, s2, s3, s4
from assay.results.claims.cells import Cells
from assay.results.claims.verdict import Claim, Finding, findings

__all__ = ["CLAIMS", "Cells", "Claim", "Finding", "findings"]

CLAIMS: Final[tuple[Claim, ...]] = (*s0.CLAIMS, *s1.CLAIMS, *s2.CLAIMS, *s3.CLAIMS, *s4.CLAIMS)
