"""No watermark: the unmarked model as one more method, so that every table has its baseline.

Paper: none.
Access: nothing; there is nothing to verify.
Differs from the paper: not applicable.
"""

from __future__ import annotations

from assay.methods.base import Method, MethodConfig, Secret
from assay.methods.reading import Reading
from assay.methods.suspect import Suspect
from assay.tasks.lab import Lab


class Clean(Method[MethodConfig]):
    """The unmarked model of the same seed; it never verifies."""

    key = "clean"
    title = "no watermark"
    paper = "the unmarked baseline"
    access = "nothing"
    family = "bits"
    embeds = False

    def draw(self, lab: Lab) -> Secret:
        """Return an empty secret."""
        return {}

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        """Return that nothing can be read."""
        return Reading.not_applicable("an unmarked model carries no watermark")
