"""The few choices that lose least at a price, and the exact dynamic programme that fills a budget with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedkd.planning.offload_problem import Floats, Ints

FIRST_MOVES = 24  # for every change of weight: enough to come close, so that the second core is small
MOST_FIRST, MOST_SECOND = 2_000, 40_000
MOST_CELLS = 100_000_000  # users x states of the table of choices
WINDOW = 256


@dataclass
class Core:
    """What filling the budget found: `users` with their new `weights` (edge steps; 0 is the device).

    `loss` is the sum of their losses at the price, and of what the budget's unused steps are worth: how far the answer
    is from φ. `proven_loss`: no choice outside what was searched loses less than this. `loss_limit`: what to
    collect next.
    """

    loss_limit: float = np.inf
    loss: float = np.inf
    proven_loss: float = 0.0
    users: list[int] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)


@dataclass
class Moves:
    """Choices of users at a price: weight (edge steps), loss beside that user's best, all flat; loss <= limit."""

    limit: float
    user: Ints
    weight: Ints
    loss: Floats
    change: Ints  # of weight, beside what the user has now
    parts: list[tuple[Ints, Ints, Floats]]

    @classmethod
    def none(cls, limit: float) -> Moves:
        """No move yet."""
        empty = np.zeros(0, dtype=np.int64)
        return cls(limit, empty, empty, np.zeros(0), empty, [])

    def add(self, first: int, kept: Floats, edge: Floats) -> None:
        """Collect from the losses of the users that start at `first`: on the device (n,), at the edge (S+1, n)."""
        at_device = np.flatnonzero(kept <= self.limit)
        weight, at_edge = np.nonzero((edge <= self.limit) & np.isfinite(edge))
        at_device, none_at = at_device[np.isfinite(kept[at_device])], weight == 0
        weight, at_edge = weight[~none_at], at_edge[~none_at]
        user = np.concatenate([at_device, at_edge]) + first
        weights = np.concatenate([np.zeros(at_device.size, dtype=np.int64), weight])
        self.parts.append((user, weights, np.concatenate([kept[at_device], edge[weight, at_edge]])))

    def close(self, now: Ints) -> None:
        """Join what was collected; moves to what a user has `now` (edge steps, (N,)) are kept with change 0."""
        user, weight, loss = (np.concatenate(each) for each in zip(*self.parts, strict=True))
        self.parts = []
        change = weight - now[user]
        movers = np.zeros(now.size, dtype=bool)
        movers[user[change != 0]] = True
        keep = movers[user]
        self.user, self.weight, self.loss, self.change = user[keep], weight[keep], loss[keep], change[keep]


def fill(moves: Moves, slack: int, price: float) -> Core:
    """The best way to fill `slack` edge steps with the moves: first with the cheapest, then with all that matters."""
    staying = price * slack if slack >= 0 else np.inf
    first = _solve(moves, _cheapest(moves), slack, price)
    best = first if first.loss < staying else Core(loss=staying)
    # what loses more than the answer so far can never be in a better one
    matters = np.flatnonzero(moves.loss <= best.loss)
    most = min(MOST_SECOND, MOST_CELLS // (2 * _half(moves, slack) + 1))
    limit = moves.limit
    if matters.size > most:
        matters = matters[np.argsort(moves.loss[matters], kind="stable")[:most]]
        limit = float(moves.loss[matters].max())
    second = _solve(moves, matters, slack, price)
    answer = second if second.loss <= best.loss else best
    answer.proven_loss = min(second.proven_loss, limit)
    return answer


def _cheapest(moves: Moves) -> Ints:
    """Places of the FIRST_MOVES moves of least loss for every change of weight."""
    order = np.lexsort((moves.loss, moves.change))
    change = moves.change[order]
    first_of = np.searchsorted(change, change)
    few = order[np.arange(order.size) - first_of < FIRST_MOVES]
    return few[np.argsort(moves.loss[few], kind="stable")[:MOST_FIRST]]


def _half(moves: Moves, slack: int) -> int:
    """States on either side of no change: room for several of the widest moves."""
    widest = int(np.abs(moves.change).max(initial=0))
    return max(WINDOW, 4 * widest, min(slack, 4 * WINDOW))


def _solve(moves: Moves, places: Ints, slack: int, price: float) -> Core:
    """Exact DP over the change of weight, one row a user; states beyond the window bound `proven_loss`."""
    places = places[np.argsort(moves.user[places], kind="stable")]
    user = moves.user[places]
    firsts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]]) if user.size else np.zeros(0, dtype=np.int64)
    groups = np.split(places, firsts[1:]) if user.size else []
    groups.sort(key=lambda group: float(moves.loss[group][moves.change[group] != 0].min(initial=np.inf)))
    half = _half(moves, slack)
    state = np.full(2 * half + 1, np.inf)
    state[half] = 0.0
    taken: list[NDArray[np.int16]] = []
    lost = np.inf  # the cheapest state that left the window
    for group in groups:
        stays = moves.loss[group][moves.change[group] == 0]
        following = state + (float(stays[0]) if stays.size else 0.0)
        choice = np.full(state.size, -1, dtype=np.int16)
        for k, place in enumerate(group):
            change, loss = int(moves.change[place]), float(moves.loss[place])
            if change > 0:
                target, source = slice(change, None), slice(None, -change)
                lost = min(lost, float(state[-change:].min()) + loss)
            elif change < 0:
                target, source = slice(None, change), slice(-change, None)
                lost = min(lost, float(state[:-change].min()) + loss)
            else:
                continue
            offered = state[source] + loss
            better = offered < following[target]
            following[target][better] = offered[better]
            choice[target][better] = k
        taken.append(choice)
        state = following
    left = slack - (np.arange(state.size) - half)
    total = np.where(left >= 0, state + price * np.maximum(left, 0), np.inf)
    place_now = int(total.argmin())
    core = Core(loss=float(total[place_now]), proven_loss=lost)
    for group, choice in zip(reversed(groups), reversed(taken), strict=True):
        k = int(choice[place_now])
        if k >= 0:
            place = group[k]
            core.users.append(int(moves.user[place]))
            core.weights.append(int(moves.weight[place]))
            place_now -= int(moves.change[place])
    return core
