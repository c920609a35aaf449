"""The denoising part of `fedkd bench planning`: speed, brute force, baselines on the same rounds, and a learner."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Rows, Shown, Table, at_least, at_most

if TYPE_CHECKING:
    from fedkd.planning.denoising_problem import Allocation, DenoisingProblem

SMALL, LARGE = 5, 1000
SMALL_MS, LARGE_S = 5.0, 1.0
ROUNDS, QUICK_ROUNDS = 200, 40
LEARNING_STEPS, QUICK_LEARNING_STEPS = 6000, 300
BRUTE_USERS, BRUTE_BUDGET = 3, 24
EVALUATION_SEED = 10_000  # rounds that the learner never saw
COLUMNS = ["satisfied %", "kB a user", "utility", "reward", "gap %", "round s", "ms a decision", "training s"]
RIVALS = ("all or nothing (OQC+)", "equal steps", "random", "AIGC as a service", "SemGen")


def tables_and_shows(request: Request) -> tuple[list[Table], list[Shown]]:
    """Speed by users; equality with brute force; rounds of 5 users by every method; the learner's gap."""
    speeds, shows = _speed(request)
    wrong, compared = _brute_force(6 if request.quick else 30)
    shows.append(at_most(f"denoising: optima that differ from brute force's, of {compared}", wrong, 0))
    rounds, more = _rounds(request)
    return [speeds, rounds], [*shows, *more]


def notes(request: Request) -> list[str]:
    """What the figures do not say of themselves."""
    return [
        "denoising: gap is the reward (Eq. 26) that a method lacks of the most that is possible within the budget; "
        "the planner optimises another order (satisfied users, bytes, utility), so it has a gap here too",
        "denoising: AIGC as a service and SemGen choose other conditions (raw pictures up; one metric), so that "
        "their reward has no gap to compare",
        "denoising: the learner's T_k is a rounded number where the paper draws it by Gumbel-Softmax; its state has "
        "the users' preferences, which Eq. 24 leaves out and without which Q_k cannot be known",
    ]


def _speed(request: Request) -> tuple[Table, list[Shown]]:
    from fedkd.planning.denoising import solve
    from fedkd.planning.denoising_problem import OBJECTIVES

    rows: Rows = {}
    worst: dict[int, float] = {}
    for users, repeats in ((SMALL, 50), (100, 5), (LARGE, 3)):
        request.say(f"denoising: {users} users")
        problems = _problems(users, repeats)
        row: dict[str, list[float]] = {}
        for objective in OBJECTIVES:
            times = [_timed(partial(solve, problem, objective))[1] for problem in problems]
            row[objective] = [1e3 * sorted(times)[len(times) // 2]]
            worst[users] = max(worst.get(users, 0.0), row[objective][0])
        rows[f"{users} users, {12 * users} edge steps"] = row
    table = Table("Denoising: ms to the exact optimum (median)", list(OBJECTIVES), rows, plain=True, digits=2)
    return table, [
        at_most(f"denoising, K={SMALL}: ms, the slowest objective's median", worst[SMALL], SMALL_MS),
        at_most(f"denoising, K={LARGE}: seconds, the slowest objective's median", worst[LARGE] / 1e3, LARGE_S),
    ]


def _problems(users: int, count: int) -> list[DenoisingProblem]:
    """Rounds of Table I with 12 edge steps a user."""
    import numpy as np

    from fedkd.planning.denoising_rounds import Setting, draw
    from fedkd.planning.quality import QualitySurface

    profile, rng = QualitySurface().profile(), np.random.default_rng(0)
    setting = Setting(edge_steps=12 * users)
    found = [draw(profile, rng, users, setting) for _ in range(count)]
    return [each.given(each.conditions()) for each in found]


def _timed(solve: Callable[[], Allocation]) -> tuple[Allocation, float]:
    start = time.perf_counter()
    found = solve()
    return found, time.perf_counter() - start


def _brute_force(count: int) -> tuple[int, int]:
    """(how many optima differ, of how many): every allocation of three users is tried."""
    import numpy as np

    from fedkd.planning.denoising import solve
    from fedkd.planning.denoising_rounds import Setting, draw
    from fedkd.planning.quality import QualitySurface

    profile, rng = QualitySurface().profile(), np.random.default_rng(1)
    wrong = 0
    for _ in range(count):
        requests = draw(profile, rng, BRUTE_USERS, Setting(edge_steps=BRUTE_BUDGET, device_steps=(1, 6, 8)))
        problem = requests.given(requests.conditions())
        ours, best = solve(problem).key, _best(problem)
        wrong += not (ours[:2] == best[:2] and abs(ours[2] - best[2]) < 1e-9)
    return wrong, count


def _best(problem: DenoisingProblem) -> tuple[float, ...]:
    """The largest key over all allocations, in blocks of the last user's choices."""
    import numpy as np

    from fedkd.planning.denoising_problem import evaluate

    most = int(problem.device_steps.max())
    edge, device = (each.ravel() for each in np.mgrid[: problem.edge_steps + 1, : most + 1])
    found = [
        evaluate(problem, np.full(BRUTE_USERS, e), np.full(BRUTE_USERS, d)) for e, d in zip(edge, device, strict=True)
    ]
    moved = np.array([each.up_bytes + each.down_bytes for each in found])
    satisfied, utility = (np.array([getattr(each, name) for each in found]) for name in ("satisfied", "utility"))
    possible = (device[:, None] <= problem.device_steps) & (edge + device >= 1)[:, None]
    places = [np.flatnonzero(possible[:, user]) for user in range(BRUTE_USERS)]
    best: tuple[float, ...] = (-1.0, 0.0, 0.0)
    for last in places[-1]:
        first, second = np.ix_(places[0], places[1])
        fits = edge[first] + edge[second] + edge[last] <= problem.edge_steps
        who = satisfied[first, 0].astype(int) + satisfied[second, 1] + int(satisfied[last, 2])
        size = moved[first, 0] + moved[second, 1] + moved[last, 2]
        worth = utility[first, 0] + utility[second, 1] + utility[last, 2]
        who = np.where(fits, who, -1)
        if who.max() < best[0]:
            continue
        chosen = who == who.max()
        chosen &= size == size[chosen].min()
        best = max(best, (float(who.max()), -float(size[chosen].min()), float(worth[chosen].max())))
    return best


def _rounds(request: Request) -> tuple[Table, list[Shown]]:
    import numpy as np

    from fedkd.planning import denoising_baselines as baselines
    from fedkd.planning.denoising import solve
    from fedkd.planning.denoising_rounds import draw
    from fedkd.planning.learning.denoising_env import Rounds
    from fedkd.planning.learning.diffusion_sac import Learning, train

    world = Rounds(SMALL)
    steps = QUICK_LEARNING_STEPS if request.quick else LEARNING_STEPS
    policy = train(world, Learning(steps=steps), lambda text: request.say(f"diffusion-SAC: {text}"))
    learner = f"diffusion-SAC, {steps} steps"
    rng = np.random.default_rng(EVALUATION_SEED)
    found: dict[str, list[tuple[Allocation, float, float]]] = {}
    for _ in range(QUICK_ROUNDS if request.quick else ROUNDS):
        requests = draw(world.profile, rng, SMALL)
        variants = requests.conditions()
        problem = requests.given(variants)
        state = world.state(requests, variants, problem)
        methods: dict[str, Callable[[], Any]] = {
            "planner": partial(solve, problem),
            "satisfied, then utility": partial(solve, problem, "satisfied-utility"),
            "utility alone": partial(solve, problem, "utility"),
            "reward alone": partial(solve, problem, "reward"),
            learner: partial(policy.plan, state, problem),
            RIVALS[0]: partial(baselines.binary, problem),
            RIVALS[1]: partial(baselines.equal_steps, problem),
            RIVALS[2]: partial(baselines.random_round, requests, rng),
            RIVALS[3]: partial(baselines.as_a_service, requests, rng),
            RIVALS[4]: partial(baselines.downscaled, requests),
        }
        most = solve(problem, "reward").reward
        for name, method in methods.items():
            answer, seconds = _timed(method)
            found.setdefault(name, []).append((answer, seconds, most))
    rows: Rows = {name: _row(name, each, np) for name, each in found.items()}
    rows[learner]["training s"] = [policy.training_s]
    satisfied = {name: row["satisfied %"][0] for name, row in rows.items()}
    moved = {name: row["kB a user"][0] for name, row in rows.items()}
    rivals = (learner, *RIVALS)
    table = Table(f"Denoising: {SMALL} users, {len(found['planner'])} rounds", COLUMNS, rows, plain=True, digits=2)
    return table, [
        at_least(
            f"denoising, K={SMALL}: satisfied users (%), planner beside the best baseline",
            satisfied["planner"],
            max(satisfied[name] for name in rivals),
        ),
        at_most(
            f"denoising, K={SMALL}: kB a user, planner beside the thriftiest baseline",
            moved["planner"],
            min(moved[name] for name in rivals),
        ),
    ]


def _row(name: str, found: list[tuple[Allocation, float, float]], np: Any) -> dict[str, list[float]]:
    """Means over rounds of what the columns name; satisfied has every round's share, for its spread."""
    answers = [answer for answer, _, _ in found]
    same = name not in RIVALS[2:]  # others choose other conditions: no common optimum
    reward = float(np.mean([answer.reward for answer in answers]))
    most = float(np.mean([best for _, _, best in found]))
    return {
        "satisfied %": [100 * float(np.mean([answer.satisfied.mean() for answer in answers]))],
        "kB a user": [float(np.mean([answer.bytes_moved / SMALL / 1e3 for answer in answers]))],
        "utility": [float(np.mean([answer.utility.sum() for answer in answers]))],
        "reward": [reward],
        "gap %": [100 * (most - reward) / abs(most)] if same else [],
        "round s": [float(np.mean([answer.round_delay_s for answer in answers]))],
        "ms a decision": [1e3 * float(np.median([seconds for _, seconds, _ in found]))],
        "training s": [],
    }
