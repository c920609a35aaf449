"""What one would otherwise do with denoising steps: equal shares, all or nothing, chance, and AIGC as a service."""

from __future__ import annotations

import numpy as np

from fedkd.planning.denoising import solve
from fedkd.planning.denoising_problem import Allocation, DenoisingProblem, evaluate
from fedkd.planning.denoising_rounds import RAW_IMAGE_BYTES, Round
from fedkd.planning.quality import STRUCTURAL
from fedkd.planning.system import PlanningError

Array = np.ndarray

RANDOM_STEPS = (5, 20)  # the range of VCE Fig. 4; the paper leaves open what it draws from


def equal_steps(problem: DenoisingProblem) -> Allocation:
    """Every user draws at the edge, with C_E / K steps (SemGen's share)."""
    share = problem.edge_steps // problem.users
    if share == 0:
        raise PlanningError(f"edge_steps={problem.edge_steps} gives {problem.users} users no step each; give more")
    return evaluate(problem, np.full(problem.users, share), np.zeros(problem.users, int))


def binary(problem: DenoisingProblem, objective: str = "satisfied-utility") -> Allocation:
    """Every user draws all at the edge or all on the device, chosen exactly (OQC+, at its best)."""
    return solve(problem, objective, binary=True)


def random_steps(
    problem: DenoisingProblem, rng: np.random.Generator, steps: tuple[int, int] = RANDOM_STEPS
) -> Allocation:
    """T_k and o_k by chance, cut to what devices and edge can do (the paper's Random, with random conditions)."""
    total = rng.integers(steps[0], steps[1] + 1, problem.users)
    edge = np.rint((1 - rng.uniform(0, 1, problem.users)) * total).astype(int)
    return within_budgets(problem, edge, total - edge)


def within_budgets(problem: DenoisingProblem, edge: Array, device: Array, variant: Array | int = 0) -> Allocation:
    """An answer cut to the budgets: devices at C_k, the edge in proportion, and one step at least for all.

    Raises PlanningError where the edge cannot give a step to all who need one.
    """
    device = np.minimum(device, problem.device_steps)
    least = np.where((device == 0) | (problem.least_edge_steps == 1), 1, 0)
    if least.sum() > problem.edge_steps:
        raise PlanningError(f"edge_steps={problem.edge_steps} is too few; the least that would do is {least.sum()}")
    edge = np.maximum(edge, least)
    if edge.sum() > problem.edge_steps:
        more = edge - least
        edge = least + np.floor(more * (problem.edge_steps - least.sum()) / more.sum() + 1e-9).astype(int)
    return evaluate(problem, edge, device, variant)


def as_a_service(
    requests: Round, rng: np.random.Generator, steps: tuple[int, int] = RANDOM_STEPS, raw_bytes: int = RAW_IMAGE_BYTES
) -> Allocation:
    """AaaS: raw pictures go up, the edge conditions and draws, with a condition and steps that users guess.

    The guess is one of the conditions that suit the preference, not compressed; steps are cut to the budget.
    """
    profile = requests.profile
    whole = (profile.resolution == profile.resolution.max()) & (profile.level == profile.level.max())
    similar = np.array([name in STRUCTURAL for name in profile.conditions])
    guesses = []
    for preference in requests.preference:
        suits = np.flatnonzero(whole & (similar == (preference > 0.5)))
        guesses.append(rng.choice(suits if suits.size else np.flatnonzero(whole)))
    problem = requests.given(np.array(guesses), up_bytes=raw_bytes)
    return within_budgets(problem, rng.integers(steps[0], steps[1] + 1, problem.users), np.zeros(problem.users, int))


def downscaled(requests: Round) -> Allocation:
    """SemGen: one metric for all (perceptual similarity), a condition that is only made smaller, equal steps.

    The size is the smallest that meets the floor in that one metric, which a trained agent approximates there.
    """
    profile, steps = requests.profile, requests.setting.assumed_steps
    fine = np.flatnonzero(profile.level == profile.level.max())
    best = profile.conditions[fine[profile.perceptual[fine, steps].argmax()]]
    fine = np.array([place for place in fine if profile.conditions[place] == best])
    fine = fine[np.argsort(profile.size_bytes[fine])]
    enough = profile.perceptual[fine, steps][None] >= requests.quality_floor[:, None]
    chosen = np.where(enough.any(axis=1), enough.argmax(axis=1), len(fine) - 1)
    return equal_steps(requests.given(fine[chosen]))


def random_round(requests: Round, rng: np.random.Generator) -> Allocation:
    """The paper's Random: conditions, compression, steps and shares all by chance."""
    chosen = rng.integers(len(requests.profile.conditions), size=requests.users)
    return random_steps(requests.given(chosen), rng)
