"""Distributed denoising control as a gymnasium environment: one round of requests a step (DDC Eqs. 24-26)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.planning.denoising_baselines import within_budgets
from fedkd.planning.denoising_problem import Allocation, DenoisingProblem, evaluate
from fedkd.planning.denoising_rounds import Round, Setting, draw
from fedkd.planning.quality import ConditionProfile, QualitySurface
from fedkd.planning.system import PlanningError

if TYPE_CHECKING:
    import gymnasium

Array = np.ndarray

MOST_STEPS = 30  # of one picture; the paper leaves open where T_k ends
EPISODE = 32  # rounds


class Rounds:
    """The environment without gymnasium: draws rounds, encodes them, decodes actions.

    The state is Eq. 24's, with what Q_k also depends on: for each user the condition (one-hot), resolution
    and quality level, preference, floor and C_k; then the delay limit and C_E, all about 0..1. An action
    (2K,) in -1..1 is T_k and o_k of Eq. 25 for each user.
    """

    def __init__(self, users: int = 5, setting: Setting | None = None, profile: ConditionProfile | None = None) -> None:
        self.users, self.setting = users, setting or Setting()
        self.profile = profile or QualitySurface().profile(MOST_STEPS)
        self.kinds = list(dict.fromkeys(self.profile.conditions))
        self.most_steps = min(MOST_STEPS, self.profile.most_steps)
        if users < 1:
            raise PlanningError(f"users={users} leaves nobody to plan for; give at least 1")

    @property
    def state_size(self) -> int:
        """Numbers in a state."""
        return self.users * (len(self.kinds) + 5) + 2

    @property
    def action_size(self) -> int:
        """Numbers in an action."""
        return 2 * self.users

    def draw(self, rng: np.random.Generator) -> tuple[Array, DenoisingProblem]:
        """A state (state_size,) and the problem that it describes."""
        requests = draw(self.profile, rng, self.users, self.setting)
        variants = requests.conditions()
        problem = requests.given(variants)
        return self.state(requests, variants, problem), problem

    def state(self, requests: Round, variants: Array, problem: DenoisingProblem) -> Array:
        """Eq. 24 (state_size,)."""
        kinds = np.array([self.kinds.index(self.profile.conditions[variant]) for variant in variants])
        columns = (
            np.eye(len(self.kinds))[kinds],
            self.profile.resolution[variants][:, None],
            self.profile.level[variants][:, None],
            requests.preference[:, None],
            (problem.quality_floor[:, None] - 0.6) / 0.2,
            problem.device_steps[:, None] / 12,
        )
        each = np.concatenate(columns, axis=1).ravel()
        return np.append(each, (problem.delay_limit_s / 10, problem.edge_steps / 60)).astype(np.float32)

    def decode(self, action: Array) -> tuple[Array, Array]:
        """Edge and device steps (K,): the first ⌊o_k T_k⌉ of T_k steps are the edge's (Eqs. 4-5)."""
        total, share = (np.clip(action.reshape(2, self.users), -1, 1) + 1) / 2
        total = np.rint(1 + total * (self.most_steps - 1)).astype(int)
        edge = np.rint(share * total).astype(int)
        return edge, total - edge

    def reward(self, problem: DenoisingProblem, action: Array) -> float:
        """Eq. 26 for an action as it is, with its broken limits."""
        return evaluate(problem, *self.decode(action)).reward

    def answer(self, problem: DenoisingProblem, action: Array) -> Allocation:
        """What an action comes to once devices and edge keep to their budgets."""
        return within_budgets(problem, *self.decode(action))


def make(users: int = 5, setting: Setting | None = None, profile: ConditionProfile | None = None) -> gymnasium.Env:
    """`Rounds` as a gymnasium environment, for any learner; an episode is 32 rounds that do not depend on each other.

    Raises PlanningError where gymnasium is not installed.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise PlanningError("gymnasium is not installed; run: pip install gymnasium") from error

    class DenoisingEnv(gymnasium.Env):
        """One round of requests a step; `info` says what the action came to within the budgets."""

        def __init__(self) -> None:
            self.rounds = Rounds(users, setting, profile)
            self.observation_space = gymnasium.spaces.Box(-1.0, 10.0, (self.rounds.state_size,), np.float32)
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.rounds.action_size,), np.float32)
            self.left = 0

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict]:
            super().reset(seed=seed)
            self.left = EPISODE
            state, self.problem = self.rounds.draw(self.np_random)
            return state, {}

        def step(self, action: Array) -> tuple[Array, float, bool, bool, dict]:
            action = np.asarray(action, float)
            reward = self.rounds.reward(self.problem, action)
            allocation = self.rounds.answer(self.problem, action)
            info = {"satisfied": float(allocation.satisfied.mean()), "bytes": allocation.bytes_moved}
            self.left -= 1
            state, self.problem = self.rounds.draw(self.np_random)
            return state, reward, False, self.left <= 0, info

    return DenoisingEnv()
