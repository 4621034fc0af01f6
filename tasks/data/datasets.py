"""Facts of the data sets: shapes, classes, sizes, normalisation, licences, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of a data set.

    Attributes:
        key: its key.
        shape: of one input: an image's (C, H, W), or a text's (L,) token ids, cut or padded.
        classes: number of classes.
        mean, std: normalisation constants per channel, in pixel space [0, 1]; empty for text.
        licence: what is known of it.
        kind: `image` or `text`.
        counts: samples of the complete training and test part, if known.
        vocabulary: of text: rows of the embedding, of which 0 is padding and 1 any word outside the vocabulary.
        obtain: how a person gets it where `assay data fetch` cannot.
        part_of: key of the data set whose files it reads, taking only `labels`; "" if it has its own.
        labels: of the whole, in order; the first becomes label 0.
    """

    key: str
    shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    kind: str = "image"
    counts: tuple[int, int] | None = None
    vocabulary: int = 0
    obtain: str = ""
    part_of: str = ""
    labels: range = range(0)


_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SIGNS = (
    (0.3406, 0.3128, 0.3229), (0.2773, 0.2673, 0.2744), "none stated; public for research, cite Stallkamp et al.",
)  # fmt: skip
_CENTRED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # where nothing was measured
_NON_COMMERCIAL = "ImageNet's terms: non-commercial research and education"
_TINY_32 = ((0.4826, 0.4510, 0.3989), (0.2501, 0.2419, 0.2565), _NON_COMMERCIAL)
_TREE = "lay it out as {0}/train/<class>/*.png and {0}/test/<class>/*.png under the data root"

# Caltech and ImageNet: 32x32, background classes counted, as in the code released with greedy residuals. GTSRB and
# LISA: 32x32, where the null-embedding paper has 48x48. Text: TREC's questions and most of IMDB's reviews are whole.
BUILT_IN = (
    DatasetInfo("caltech101", (3, 32, 32), 102, *_IMAGENET, "CC BY 4.0 (CaltechDATA)"),
    DatasetInfo("caltech256", (3, 32, 32), 257, *_IMAGENET, "CC BY 4.0 (CaltechDATA)"),
    DatasetInfo("cifar10", (3, 32, 32), 10, *_CIFAR, "research use", counts=(50_000, 10_000)),
    DatasetInfo(
        "cifar100", (3, 32, 32), 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "research use",
        counts=(50_000, 10_000),
    ),
    DatasetInfo(
        "cifar5", (3, 32, 32), 5, *_CIFAR, "research use", counts=(25_000, 5_000), part_of="cifar10", labels=range(5),
    ),
    DatasetInfo(
        "digits", (1, 28, 28), 10, (0.3055,), (0.3251,), "CC BY 4.0 (UCI, bundled with scikit-learn)",
        counts=(1_438, 359),
    ),
    DatasetInfo("fashion-mnist", (1, 28, 28), 10, (0.2860,), (0.3530,), "MIT", counts=(60_000, 10_000)),
    DatasetInfo("gtsrb", (3, 32, 32), 43, *_SIGNS, counts=(39_209, 12_630)),
    # Two parts without a common class, for transfer where LISA is not at hand: as many classes as it has, and the rest.
    DatasetInfo("gtsrb17", (3, 32, 32), 17, *_SIGNS, counts=(9_239, 2_880), part_of="gtsrb", labels=range(26, 43)),
    DatasetInfo("gtsrb26", (3, 32, 32), 26, *_SIGNS, counts=(29_970, 9_750), part_of="gtsrb", labels=range(26)),
    # The first 100 of the sorted WordNet ids.
    DatasetInfo(
        "imagenet100", (3, 32, 32), 100, *_IMAGENET, _NON_COMMERCIAL,
        obtain="ImageNet asks for an account (https://image-net.org): unpack it as imagenet/train/<wnid>/*.JPEG and "
        "imagenet/val/<wnid>/*.JPEG under the data root",
    ),
    DatasetInfo(
        "imdb", (400,), 2, (), (), "none stated; free for research, cite Maas et al.", "text", (25_000, 25_000),
        vocabulary=20_000,
    ),
    DatasetInfo(
        "lisa", (3, 32, 32), 17, *_CENTRED, "given out for research on request", counts=(3_987, 340),
        obtain=f"its authors give it out on request; {_TREE.format('lisa')}",
    ),
    DatasetInfo("mnist", (1, 28, 28), 10, (0.1307,), (0.3081,), "CC BY-SA 3.0", counts=(60_000, 10_000)),
    DatasetInfo(
        "tiny_imagenet", (3, 64, 64), 200, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), _NON_COMMERCIAL,
        counts=(100_000, 10_000),
    ),
    DatasetInfo(
        "tiny20", (3, 32, 32), 20, *_TINY_32, counts=(10_000, 1_000), part_of="tiny_imagenet_32", labels=range(20),
    ),
    # Every second class of Tiny ImageNet at half its size: of CIFAR-100's shape.
    DatasetInfo("tiny_imagenet_32", (3, 32, 32), 100, *_TINY_32, counts=(50_000, 5_000)),
    DatasetInfo(
        "phrases", (16,), 4, (), (), "Apache-2.0 (made up, bundled with assay)", "text", (1_600, 400), vocabulary=128,
    ),
    DatasetInfo(
        "trec", (40,), 6, (), (), "none stated; widely used for research", "text", (5_452, 500), vocabulary=8_192,
    ),
    DatasetInfo(
        "youtube_faces", (3, 55, 47), 1_283, *_CENTRED, "given out for research on request", counts=(375_645, 64_150),
        obtain=f"its authors give it out on request; {_TREE.format('youtube_faces')}",
    ),
)  # fmt: skip
