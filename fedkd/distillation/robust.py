"""Robust lambda: adapters whose updates stand out against the others' are not believed.

The update of an adapter is ΔW = (alpha/r) B A. Two rules compare it with those of the others:

- *Norm*: ‖ΔW_b‖ above `trust.norm_outlier` times the median of the others'. Honest edges train for the same steps at
  the same rate, and their norms lie within a fifth of each other.
- *Cosine*: honest updates on quite different concepts agree only a little, but they do agree: they learn the same kind
  of picture. Let a be the median cosine among the others, and c that of ΔW_b to them. It is an outlier when
  c < -`trust.cosine_outlier` · a, and c < -FLOOR: when it points away from where the others agree. Where they do not
  agree (a ≤ 0) nobody is one.

Both need a majority of honest edges; below MANY_NORMS and MANY_COSINES adapters a rule says nothing. That an adapter is
useless without standing out, such as one trained on random labels, shows in its validation loss (`weights.outliers`).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping

from fedkd.models.updates import cosine, norm, update_of
from fedkd.recipe.sections import TrustConfig

MANY_NORMS, MANY_COSINES = 3, 4
FLOOR = 0.02  # cosines of unrelated updates are smaller than this


def update_outliers(adapters: Mapping[str, bytes], config: TrustConfig) -> dict[str, str]:
    """{adapter: why its lambda is 0}; AdapterError when one is malformed."""
    updates = {name: update_of(data) for name, data in sorted(adapters.items())}
    norms = {name: norm(update) for name, update in updates.items()}
    cosines = {
        frozenset(pair): cosine(updates[pair[0]], updates[pair[1]]) for pair in itertools.combinations(updates, 2)
    }
    return cosine_outliers(list(updates), cosines, config.cosine_outlier) | norm_outliers(norms, config.norm_outlier)


def norm_outliers(norms: Mapping[str, float], factor: float) -> dict[str, str]:
    """Those whose norm is more than `factor` times the median of the others'."""
    found = {}
    for name, size in norms.items():
        others = [norms[other] for other in norms if other != name]
        if len(norms) >= MANY_NORMS and not size <= factor * statistics.median(others):
            typical = statistics.median(others)
            found[name] = (
                f"its update has norm {size:.3g}, the others' median is {typical:.3g} (limit {factor:g} times)"
            )
    return found


def cosine_outliers(names: list[str], cosines: Mapping[frozenset[str], float], share: float) -> dict[str, str]:
    """Those that point away from where the others agree, by at least `share` of how far those agree."""
    found = {}
    for name in names if len(names) >= MANY_COSINES else []:
        others = [other for other in names if other != name]
        agreement = statistics.median(cosines[frozenset(pair)] for pair in itertools.combinations(others, 2))
        mine = statistics.median(cosines[frozenset((name, other))] for other in others)
        if agreement > 0 and mine < -max(FLOOR, share * agreement):
            found[name] = f"its update points away from the others' (cosine {mine:.2g}, theirs {agreement:.2g})"
    return found
