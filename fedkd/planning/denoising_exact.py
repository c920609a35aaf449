"""One choice for every user under one budget, exactly and in lexicographic order: a multiple-choice knapsack."""

from __future__ import annotations

import numpy as np

Array = np.ndarray

WORTH_PRUNING = 20_000  # states; below, the program itself is faster than its bound
BISECTIONS = 40


def knapsack(primary: Array, secondary: Array, budget: int) -> Array | None:
    """Amounts e_k (K,) with `Σ e_k ≤ budget` of the largest (Σ primary, Σ secondary), or None where none fits.

    `primary` and `secondary` (K, E+1) are the worth of amounts 0..E to each user, -inf where an amount cannot
    be. Primary values must be whole numbers below 2^53 in sum, so that ties are ties. Dynamic programming over
    the budget, O(K·budget·E), on those states alone that can still end at the whole budget, after amounts
    that a Lagrangian bound rules out are left out.
    """
    kept = undominated(primary, secondary)
    if not kept.any(axis=1).all():
        return None
    if len(primary) * budget > WORTH_PRUNING:
        kept = undominated(*(np.where(unbeaten(primary, kept, budget), each, -np.inf) for each in (primary, secondary)))
        highest = np.where(kept, primary, -np.inf).max(axis=1, keepdims=True)
        if (~kept | (primary == highest)).all():  # only the secondary worth is left to decide
            kept = unbeaten(secondary, kept, budget)
    amounts = [np.flatnonzero(row) for row in kept]
    least = np.array([row[0] for row in amounts])
    most = np.array([row[-1] for row in amounts])
    if least.sum() > budget:
        return None
    if most.sum() <= budget:
        return most  # the last kept amount is the best: nobody competes

    # After k users, only uses in low[k]..high[k] can be part of an answer that ends at the budget.
    users = len(amounts)
    before_least, before_most = np.append(0, least.cumsum()), np.append(0, most.cumsum())
    high = np.minimum(before_most, budget - (least.sum() - before_least))
    low = np.maximum(before_least, np.minimum(high, budget - (most.sum() - before_most)))
    first, second = np.zeros(high[0] - low[0] + 1), np.zeros(high[0] - low[0] + 1)
    choices: list[Array] = []
    for k in range(users):
        width = int(high[k + 1] - low[k + 1] + 1)
        left = max(0, int(low[k] - (low[k + 1] - most[k])))
        right = max(0, int(high[k + 1] - least[k] - high[k]))
        first = _padded(first, left, right)
        second = _padded(second, left, right)
        origin = int(low[k + 1] - low[k]) + left
        choice = np.zeros(width, np.min_scalar_type(len(amounts[k])))
        best_first, best_second = np.full(width, -np.inf), np.full(width, -np.inf)
        new_first, new_second = np.empty(width), np.empty(width)
        better, tied = np.empty(width, bool), np.empty(width, bool)
        for place, amount in enumerate(amounts[k]):
            start = origin - int(amount)
            np.add(first[start : start + width], primary[k, amount], out=new_first)
            np.add(second[start : start + width], secondary[k, amount], out=new_second)
            np.equal(new_first, best_first, out=tied)
            np.greater(new_second, best_second, out=better)
            tied &= better
            np.greater(new_first, best_first, out=better)
            better |= tied
            np.copyto(best_first, new_first, where=better)
            np.copyto(best_second, new_second, where=better)
            np.copyto(choice, place, where=better)
        choices.append(choice)
        first, second = best_first, best_second

    found = np.empty(users, int)
    use = int(high[users])
    for k in range(users - 1, -1, -1):
        found[k] = amounts[k][choices[k][use - low[k + 1]]]
        use = min(use - int(found[k]), int(high[k]))
    return found


def undominated(primary: Array, secondary: Array) -> Array:
    """(K, E+1): whether an amount is worth more than every smaller one, in lexicographic order."""
    kept = np.zeros(primary.shape, bool)
    best, second = np.full(len(primary), -np.inf), np.full(len(primary), -np.inf)
    for amount in range(primary.shape[1]):
        new, other = primary[:, amount], secondary[:, amount]
        better = (new > best) | ((new == best) & (other > second))
        kept[:, amount] = better
        best, second = np.where(better, new, best), np.where(better, other, second)
    return kept


def unbeaten(worth: Array, kept: Array, budget: int) -> Array:
    """(K, E+1): the kept amounts that a best answer may hold, by the Lagrangian bound with one multiplier.

    For any multiplier m ≥ 0 no answer is worth more than `bound = m·budget + Σ max_e (worth - m·e)`. With a
    user's amount set, the bound falls by what that amount lacks of its maximum; below a known answer, the
    amount is out. Never removes an amount of a best answer.
    """
    worth = np.where(kept, worth, -np.inf)
    amounts = np.arange(worth.shape[1])
    finite = worth[kept]
    margin = 1e-9 * max(1.0, float(np.abs(finite).max()) * len(worth))
    low, high = 0.0, float(np.ptp(finite)) + 1.0  # at `high` everyone takes the least amount
    bound, answer = np.inf, np.argmax(kept, axis=1)
    if answer.sum() > budget:
        return kept
    multiplier = 0.0
    for _ in range(BISECTIONS):
        reduced = worth - multiplier * amounts
        taken = reduced.argmax(axis=1)
        value = multiplier * budget + reduced.max(axis=1).sum()
        if value < bound:
            bound, best = value, multiplier
        if taken.sum() > budget:
            low, over = multiplier, taken
        else:
            high, answer = multiplier, taken
            if multiplier == 0:
                break
        multiplier = (low + high) / 2
    else:
        answer = _filled(worth, answer, over, budget)
    known = worth[np.arange(len(worth)), answer].sum()
    reduced = worth - best * amounts
    return kept & (reduced.max(axis=1, keepdims=True) - reduced <= bound - known + margin)


def _filled(worth: Array, within: Array, over: Array, budget: int) -> Array:
    """An answer `within` the budget, moved towards the one `over` it for as many users as fit, best first."""
    answer, user = within.copy(), np.arange(len(worth))
    more = over - within
    gain = worth[user, over] - worth[user, within]
    left = budget - int(within.sum())
    for k in np.argsort(-gain / np.maximum(more, 1)):
        if 0 < more[k] <= left and gain[k] > 0:
            answer[k], left = over[k], left - more[k]
    return answer


def _padded(values: Array, left: int, right: int) -> Array:
    """Below the least use nothing is possible; more budget than can be used is worth what all of it is."""
    return np.concatenate([np.full(left, -np.inf), values, np.full(right, values[-1])])
