"""T6, the key re-draw test (docs/protocol.md §4): does the owner's key score higher than fresh keys of the same law?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

FIRST_BLOCK, LARGEST_BLOCK = 16, 128


def redraw_p_value(reaches: Callable[[int, int], Iterable[bool]], total: int, stop: int = 10) -> tuple[float, int]:
    """Return the sequential Monte Carlo p-value of Besag and Clifford (1991), and how many fresh keys it took.

    Exact whenever the owner's key is independent of the suspect. Drawing ends at the `stop`-th fresh key that reaches
    the owner's score: `p = stop / l` after `l` keys; otherwise `p = (g + 1) / (total + 1)` with `g` such keys in all.

    Args:
        reaches: says for keys `begin` to `end` (exclusive), in order, whether each scores at least as high.
        total: the most fresh keys; the smallest p-value is `1 / (total + 1)`.
        stop: how many keys must reach the score before drawing ends.
    """
    reached, begin, block = 0, 0, FIRST_BLOCK
    while begin < total:
        end = min(begin + block, total)
        for drawn, hit in enumerate(reaches(begin, end), begin + 1):
            reached += bool(hit)
            if reached == stop:
                return stop / drawn, drawn
        begin, block = end, min(2 * block, LARGEST_BLOCK)
    return (reached + 1) / (total + 1), total
