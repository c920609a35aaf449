"""OQC's P1 for many users: one multiplier prices the edge's steps, a small core fills the budget, a bound certifies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkd.planning.offload_core import Core, Moves, fill
from fedkd.planning.offload_problem import Floats, Ints, OffloadProblem, OffloadSolution
from fedkd.planning.system import PlanningError

CHUNK = 2**18  # costs in memory at a time
SAMPLE = 20_000  # users that the core's size is guessed from
WANTED_MOVES = 4_000
MOST_MOVES = 40_000
FURTHER = 8  # times the loss limit that another look may take of many users
ROUNDS = 4
TIE = 1e-14  # choices that differ by less, beside the size of costs, count as equal
BIN_SHIFT, BINS = np.uint64(44), 2**20  # the leading 20 bits of a float64: exponent and 8 bits of mantissa


@dataclass(frozen=True)
class _Menu:
    """What some users can choose: on the device for `kept`, (n,), or s steps at the edge for `edge[s]`, (S+1, n).

    `kept` is inf where only the edge will do; then `start` and `start_steps` are the least at the edge.
    """

    rows: slice
    kept: Floats
    kept_steps: Ints
    edge: Floats
    start: Floats
    start_steps: Ints


def solve_dual(problem: OffloadProblem) -> OffloadSolution:
    """A choice and a proof of how good it is, in O(N · S_1) time and memory that hardly grows with S_1.

    For a price λ of one edge step every user chooses alone: `φ(λ) = Σ min(R_n + λ s_n) - λ S_e` bounds the
    optimum from below. λ is where the users' convex hulls (the relaxed P1) use up the budget. The budget's
    remainder is then filled by an exact DP over the choices that lose least at λ. A choice left out of that core
    loses at least `t`, so that `φ + min(loss of the answer, t)` is a bound too: with `t` the larger the answer
    is optimal.
    """
    price = _price(problem)
    core = Core(loss_limit=_loss_limit(problem, price))
    for _ in range(ROUNDS):
        base, moves = _choose(problem, price, core.loss_limit)
        core = fill(moves, base.slack, price)
        if not np.isfinite(core.loss):  # rounding let ties pass the budget: a price a little above them does not
            price *= 1 + 1e-9
            continue
        # a loss below the limit proves the optimum; else look again at all that loses less, if they are few
        if core.loss <= core.proven_loss or core.loss <= moves.limit or moves.user.size > MOST_MOVES:
            break
        if problem.users > SAMPLE and core.loss > FURTHER * moves.limit:
            break
        core = Core(loss_limit=core.loss * (1 + 1e-9))
    if not np.isfinite(core.loss):
        raise PlanningError("the costs differ by too many orders of magnitude to be priced; give method dp")
    at_edge, steps = base.at_edge, base.steps
    for user, weight in zip(core.users, core.weights, strict=True):
        at_edge[user], steps[user] = weight > 0, weight if weight > 0 else base.kept_steps[user]
    objective = problem.objective(at_edge, steps)
    proven = core.loss <= core.proven_loss
    bound = objective if proven else min(objective, base.dual + min(core.loss, core.proven_loss))
    return OffloadSolution(problem, at_edge, steps, objective, bound, "dual", price, min(bound, base.dual))


def _menus(problem: OffloadProblem, stride: int = 1) -> Iterator[_Menu]:
    """The users' choices, so many users at a time that they stay in the processor's cache."""
    size = max(1, CHUNK // (int(np.max(problem.edge_most_steps)) + 1))
    for first in range(0, problem.users, size * stride):
        rows = slice(first, min(first + size, problem.users))
        device, edge = problem.costs("device", rows), problem.costs("edge", rows)
        kept_steps, kept = device.argmin(axis=0), device.min(axis=0)
        forced = ~np.isfinite(kept)
        start, start_steps = kept, np.zeros(kept.size, dtype=np.int64)
        if forced.any():
            least = np.isfinite(edge).argmax(axis=0)
            start = np.where(forced, edge[least, np.arange(kept.size)], kept)
            start_steps = np.where(forced, least, 0)
        yield _Menu(rows, kept, kept_steps, edge, start, start_steps)


def _hull(menu: _Menu) -> tuple[Floats, Ints]:
    """Falls of cost a step on the lower convex hull of each menu, and how many steps each is, both flat.

    R is convex in s: the hull is one jump from the start to where the fall a step is steepest, then single steps.
    """
    steps = np.arange(len(menu.edge))[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        fall = (menu.start - menu.edge) / np.maximum(steps - menu.start_steps, 1)
        fall[steps <= menu.start_steps] = -np.inf
        jump_to = fall.argmax(axis=0)
        jump = fall[jump_to, np.arange(jump_to.size)]
        single = menu.edge[:-1] - menu.edge[1:]
        # the falls decrease along a hull; rounding must not turn them round
        further = (steps[1:] > jump_to) & (single > 0)
    worth = jump > 0
    single_falls = np.minimum(single, jump)[further & worth]
    falls = np.concatenate([jump[worth], single_falls])
    widths = np.ones(falls.size, dtype=np.int64)
    widths[: int(worth.sum())] = (jump_to - menu.start_steps)[worth]
    return falls, widths


def _price(problem: OffloadProblem) -> float:
    """The fall of cost a step at which the hulls' falls, steepest first, have used the budget up; 0 if never.

    Many users take two passes: steps by the leading bits of the fall, then a sort of the falls in the bin that
    matters. Few are sorted at once.
    """
    left = problem.edge_budget_steps - problem.least_edge_steps
    few = problem.users * (int(np.max(problem.edge_most_steps)) + 1) <= CHUNK
    critical = -1
    if not few:
        total = np.zeros(BINS)
        for menu in _menus(problem):
            falls, widths = _hull(menu)
            total += np.bincount(_bins(falls), widths, minlength=BINS)
        used = np.cumsum(total[::-1])
        if used[-1] <= left:
            return 0.0
        place = int(np.searchsorted(used, left, side="right"))
        critical = BINS - 1 - place
        left -= int(used[place - 1]) if place else 0
    found: list[tuple[Floats, Ints]] = []
    for menu in _menus(problem):
        falls, widths = _hull(menu)
        inside = slice(None) if few else _bins(falls) == critical
        found.append((falls[inside], widths[inside]))
    falls, widths = (np.concatenate(each) for each in zip(*found, strict=True))
    order = np.argsort(-falls, kind="stable")
    crossing = int(np.searchsorted(np.cumsum(widths[order]), left, side="right"))
    return float(falls[order[crossing]]) if crossing < order.size else 0.0


def _bins(falls: Floats) -> Ints:
    """Which bin each positive fall is in: its leading bits, so that bins rise with the fall."""
    return (falls.view(np.uint64) >> BIN_SHIFT).astype(np.int64)


@dataclass
class _Base:
    """What everybody chooses alone at the price, and φ(λ); `slack` is what that leaves of the budget."""

    at_edge: NDArray[np.bool_]
    steps: Ints
    kept_steps: Ints
    dual: float
    slack: int


def _priced(menu: _Menu, price: float) -> tuple[Floats, Floats, Floats]:
    """(loss on the device (n,), losses at the edge (S+1, n), the least cost at the price (n,))."""
    edge = menu.edge + price * np.arange(len(menu.edge))[:, None]
    least = np.minimum(edge.min(axis=0), menu.kept)
    edge -= least
    return menu.kept - least, edge, least


def _loss_limit(problem: OffloadProblem, price: float) -> float:
    """A loss below which about WANTED_MOVES choices lie, guessed from a sample of the users."""
    stride = max(1, problem.users // SAMPLE)
    losses: list[Floats] = []
    seen = 0
    for menu in _menus(problem, stride):
        kept, edge, least = _priced(menu, price)
        seen += least.size
        losses += [kept[kept > TIE], edge[edge > TIE]]
    found = np.concatenate(losses)
    found = found[np.isfinite(found)]
    wanted = int(WANTED_MOVES * seen / problem.users)
    return float(np.partition(found, wanted)[wanted]) if wanted < found.size else np.inf


def _choose(problem: OffloadProblem, price: float, loss_limit: float) -> tuple[_Base, Moves]:
    """The cheapest choice of everybody at the price, ties filled up to the budget, and what else loses little."""
    base = _Base(
        np.zeros(problem.users, dtype=bool),
        np.zeros(problem.users, dtype=np.int64),
        np.zeros(problem.users, dtype=np.int64),
        0.0,
        problem.edge_budget_steps,
    )
    moves = Moves.none(loss_limit)
    sums: list[float] = []
    ties: list[tuple[Ints, Ints]] = []
    for menu in _menus(problem):
        kept, edge, least = _priced(menu, price)
        sums.append(float(least.sum()))
        tie = TIE * max(1.0, float(np.abs(least).max()))
        same = edge <= tie
        light = np.where(kept <= tie, 0, same.argmax(axis=0))
        heavy = np.maximum(light, np.where(same.any(axis=0), len(edge) - 1 - same[::-1].argmax(axis=0), 0))
        tied = np.flatnonzero(heavy > light)
        ties.append((tied + menu.rows.start, heavy[tied]))
        base.steps[menu.rows] = light  # edge steps for now
        base.kept_steps[menu.rows] = menu.kept_steps
        moves.add(menu.rows.start, kept, edge)
    base.slack -= int(base.steps.sum())
    users, heavy = (np.concatenate(each) for each in zip(*ties, strict=True))
    taken = users[np.cumsum(heavy - base.steps[users]) <= base.slack]
    gained = heavy[: taken.size] - base.steps[taken]
    base.steps[taken] += gained
    base.slack -= int(gained.sum())
    base.dual = float(np.sum(sums)) - price * problem.edge_budget_steps
    moves.close(base.steps)
    base.at_edge = base.steps > 0
    base.steps = np.where(base.at_edge, base.steps, base.kept_steps)
    return base, moves
