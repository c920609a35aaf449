"""Soft actor-critic whose actor denoises an action (DDC Algorithm 3, Eqs. 21-30): the paper's learner, a baseline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedkd.planning.denoising_problem import Allocation, DenoisingProblem
from fedkd.planning.learning.denoising_env import Rounds
from fedkd.planning.system import PlanningError

Array = np.ndarray
Say = Callable[[str], None]


@dataclass(frozen=True)
class Learning:
    """What the paper leaves open, but for three denoising steps and the Eq. 26 weights.

    Rounds are independent, so what comes next says nothing about an action: `discount` 0 takes that noise
    out of Eq. 29. `rounds_a_step` environments run side by side, each step with one update.
    """

    steps: int = 4000
    rounds_a_step: int = 16
    batch: int = 256
    memory: int = 100_000
    warm_up: int = 100
    hidden: int = 128
    denoising_steps: int = 3
    learning_rate: float = 1e-3
    entropy: float = 0.02
    discount: float = 0.0
    target_rate: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "rounds_a_step", "batch", "memory", "hidden", "denoising_steps"):
            if getattr(self, name) < 1:
                raise PlanningError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.discount < 1:
            raise PlanningError(f"discount={self.discount} must lie in 0..1, 1 left out")
        if not (self.learning_rate > 0 and self.entropy >= 0 and 0 < self.target_rate <= 1):
            raise PlanningError("learning_rate and target_rate must be positive, entropy not negative")


@dataclass
class Policy:
    """A trained actor: its networks, how long it trained, and the mean reward along the way."""

    rounds: Rounds
    actor: Any
    learning: Learning
    training_s: float = 0.0
    rewards: list[tuple[int, float]] = field(default_factory=list)

    def act(self, states: Array) -> Array:
        """(N, 2K) actions in -1..1 for states (N, S), without exploration."""
        import torch

        with torch.no_grad():
            return self.actor(torch.as_tensor(np.atleast_2d(states)), False)[0].numpy().astype(float)

    def plan(self, state: Array, problem: DenoisingProblem) -> Allocation:
        """The allocation for one round, cut to the budgets."""
        return self.rounds.answer(problem, self.act(state)[0])


def diffusion_actor(states: int, actions: int, learning: Learning) -> tuple[Callable[..., Any], list[Any]]:
    """(actor, parameters): the chain a_T → a_0 of Eq. 21 with a network that predicts a_0 (a small DDPM).

    `actor(states, explore)` is (actions, log π). The density of a whole chain has no closed form; log π is
    the last transition's, a Gaussian squashed by tanh, whose width the network also gives.
    """
    import torch
    from torch import nn

    count, hidden = learning.denoising_steps, learning.hidden
    net = nn.Sequential(
        nn.Linear(states + actions + count, hidden),
        nn.Mish(),
        nn.Linear(hidden, hidden),
        nn.Mish(),
        nn.Linear(hidden, 2 * actions),
    )
    # variance-preserving schedule over `count` steps
    steps = torch.arange(1, count + 1)
    betas = 1 - torch.exp(-0.1 / count - 0.5 * (10 - 0.1) * (2 * steps - 1) / count**2)
    kept = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1), kept[:-1]])
    from_clean = betas * before.sqrt() / (1 - kept)
    from_noisy = (1 - betas).sqrt() * (1 - before) / (1 - kept)
    spread = (betas * (1 - before) / (1 - kept)).sqrt()
    codes = torch.eye(count)

    def actor(state: torch.Tensor, explore: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        rows = len(state)
        # a decision without exploration starts from the mean of the noise, so that it is repeatable
        noisy = torch.randn(rows, actions) if explore else torch.zeros(rows, actions)
        for step in range(count - 1, -1, -1):
            raw, width = net(torch.cat([state, noisy, codes[step].expand(rows, -1)], 1)).chunk(2, 1)
            if step:
                noisy = from_clean[step] * raw.clamp(-3, 3) + from_noisy[step] * noisy
                noisy = noisy + spread[step] * torch.randn_like(noisy) if explore else noisy
        log_width = -2.5 + 2.0 * torch.tanh(width)  # e^-4.5 to e^-0.5
        noise = torch.randn_like(raw) if explore else torch.zeros_like(raw)
        before_squash = raw + log_width.exp() * noise
        action = torch.tanh(before_squash)
        log_density = -0.5 * noise**2 - log_width - 0.5 * math.log(2 * math.pi)
        # log|d tanh(u)/du| in a form that does not overflow
        squash = 2 * (math.log(2) - before_squash - nn.functional.softplus(-2 * before_squash))
        return action, (log_density - squash).sum(1)

    return actor, list(net.parameters())


def critic(states: int, actions: int, hidden: int) -> Any:
    """A Q network: (N, states + actions) to (N, 1)."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(states + actions, hidden), nn.Mish(), nn.Linear(hidden, hidden), nn.Mish(), nn.Linear(hidden, 1)
    )


def train(rounds: Rounds, learning: Learning | None = None, say: Say = lambda text: None) -> Policy:
    """Train a policy by Algorithm 3; the same seed gives the same policy on the same machine."""
    import torch
    from torch.nn.functional import mse_loss

    learning = learning or Learning()
    rng = np.random.default_rng(learning.seed)
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(learning.seed)
        sizes = rounds.state_size, rounds.action_size
        actor, weights = diffusion_actor(*sizes, learning)
        critics = [critic(*sizes, learning.hidden) for _ in range(2)]
        targets = [critic(*sizes, learning.hidden) for _ in range(2)]
        for target, source in zip(targets, critics, strict=True):
            target.load_state_dict(source.state_dict())
        actor_rule = torch.optim.Adam(weights, learning.learning_rate)
        critic_rule = torch.optim.Adam([each for net in critics for each in net.parameters()], learning.learning_rate)
        policy = Policy(rounds, actor, learning)
        memory = _Memory(learning.memory, *sizes)
        now = [rounds.draw(rng) for _ in range(learning.rounds_a_step)]
        recent: list[float] = []
        for step in range(learning.steps):
            states = np.stack([state for state, _ in now])
            if step < learning.warm_up:
                actions = rng.uniform(-1, 1, (len(now), sizes[1])).astype(np.float32)
            else:
                with torch.no_grad():
                    actions = actor(torch.as_tensor(states))[0].numpy()
            rewards = np.array([rounds.reward(each[1], act) for each, act in zip(now, actions, strict=True)])
            following = [rounds.draw(rng) for _ in now]
            memory.add(states, actions, rewards, np.stack([state for state, _ in following]))
            now = following
            recent.append(float(rewards.mean()))
            if step >= learning.warm_up:
                state, action, reward, after = (torch.as_tensor(each) for each in memory.sample(rng, learning.batch))
                wanted = reward
                if learning.discount:  # Eq. 29
                    with torch.no_grad():
                        next_action, log_density = actor(after)
                        worth = torch.min(*(net(torch.cat([after, next_action], 1))[:, 0] for net in targets))
                        wanted = reward + learning.discount * (worth - learning.entropy * log_density)
                joined = torch.cat([state, action], 1)
                critic_rule.zero_grad()
                one, other = (mse_loss(net(joined)[:, 0], wanted) for net in critics)
                (one + other).backward()  # Eq. 28
                critic_rule.step()
                drawn, log_density = actor(state)
                worth = torch.min(*(net(torch.cat([state, drawn], 1))[:, 0] for net in critics))
                actor_rule.zero_grad()
                (learning.entropy * log_density - worth).mean().backward()  # Eq. 27
                actor_rule.step()
                with torch.no_grad():  # Eq. 30
                    for target, source in zip(targets, critics, strict=True):
                        for old, new in zip(target.parameters(), source.parameters(), strict=True):
                            old.lerp_(new, learning.target_rate)
            if (step + 1) % max(1, learning.steps // 20) == 0:
                policy.rewards.append((step + 1, float(np.mean(recent))))
                say(f"step {step + 1} of {learning.steps}: reward {np.mean(recent):.3f}")
                recent = []
    policy.training_s = time.perf_counter() - started
    return policy


class _Memory:
    """The replay buffer E of Algorithm 3; the oldest round goes first."""

    def __init__(self, size: int, states: int, actions: int) -> None:
        shapes = ((size, states), (size, actions), (size,), (size, states))
        self.columns = [np.zeros(shape, np.float32) for shape in shapes]
        self.place, self.filled = 0, 0

    def add(self, *rows: Array) -> None:
        """Store N rounds: states, actions, rewards, next states."""
        where = (self.place + np.arange(len(rows[0]))) % len(self.columns[0])
        for column, values in zip(self.columns, rows, strict=True):
            column[where] = values
        self.place = (self.place + len(where)) % len(self.columns[0])
        self.filled = min(self.filled + len(where), len(self.columns[0]))

    def sample(self, rng: np.random.Generator, count: int) -> list[Array]:
        """`count` stored rounds, with repetition."""
        drawn = rng.integers(self.filled, size=count)
        return [column[drawn] for column in self.columns]
