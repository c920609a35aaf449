"""Train edge agents episode by episode (LAD-TS Algorithm 1), and measure them on held-out arrivals meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedkd.planning.cluster import HELD_OUT_SEEDS, ClusterSetting, draw
from fedkd.planning.learning.edge_agents import Agents, AgentSetting
from fedkd.planning.learning.edge_cluster import EdgeCluster, Slot
from fedkd.planning.learning.edge_memory import Pools

if TYPE_CHECKING:
    import torch

Array = np.ndarray
Say = Callable[[str], None]
SEED_STRIDE = 10_000  # training seed s has the arrivals s * stride + episode


def scales(setting: ClusterSetting) -> Array:
    """What Eq. 6's numbers (2 + B,) are divided by: the most data and work, and 10 s of a mean edge's work."""
    most_work = setting.density[1] * setting.steps[1]
    usual = 10 * setting.slot_s * sum(setting.capacity) / 2
    return np.array([setting.data_bits[1] / 1e6, most_work, *[usual] * setting.edges])


def states(slot: Slot, setting: ClusterSetting) -> torch.Tensor:
    """Eq. 6 (S, B, N, 2 + B) in numbers about 0..1."""
    import torch

    return torch.as_tensor(slot.features() / scales(setting), dtype=torch.float32)


@dataclass
class Training:
    """Agents of `seeds` training seeds on one cluster; `run` goes on where it stopped."""

    cluster: ClusterSetting
    setting: AgentSetting
    seeds: tuple[int, ...] = (0, 1, 2)
    episode: int = 0
    training_s: float = 0.0
    updates: int = 0
    curve: dict[int, list[float]] = field(default_factory=dict)  # episodes: mean delay of each seed
    rewards: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        import torch

        edges = self.cluster.edges
        self.groups = len(self.seeds) * edges
        self.agents = Agents(
            self.setting,
            self.groups,
            2 + edges,
            edges,
            seed=sum((s + 1) * 1_000_003**i for i, s in enumerate(self.seeds)) % 2**31,
        )
        self.pools = Pools(self.groups, self.setting.pool, 2 + edges, edges)
        self.history = torch.randn(self.groups, self.cluster.most_tasks, edges, generator=self.agents.generator)

    def run(self, episodes: int) -> None:
        """Train until `episodes` episodes are done."""
        while self.episode < episodes:
            started = time.process_time()
            self.rewards.append(self._episode())
            self.episode += 1
            self.training_s += time.process_time() - started

    def _episode(self) -> float:
        import torch

        world = EdgeCluster(draw(self.cluster, [seed * SEED_STRIDE + self.episode for seed in self.seeds]))
        self.agents.chance = max(self.setting.least_chance, 1 - self.episode / self.setting.exploring_episodes)
        waiting: tuple[torch.Tensor, ...] | None = None
        total, count = 0.0, 0
        while not world.over:
            slot = world.slot
            state = self._stack(states(slot, self.cluster))
            mask = self._stack(torch.as_tensor(slot.mask))
            action, latent, denoised = self.agents.act(state, self.history)
            if waiting is not None:  # a slot's last task is followed by the first of the next slot (Eq. 7)
                self._store(waiting, state[:, 0], latent[:, 0])
            served = world.step(action.view(slot.mask.shape).numpy())
            if self.setting.method == "lad-ts":
                self.history = torch.where(mask[..., None], denoised, self.history)
            reward = -self._stack(torch.as_tensor(served.delay_s, dtype=torch.float32)) / self.setting.reward_unit_s
            waiting = (mask, state, latent, reward, action)
            total, count = total + float(served.delay_s.sum()), count + int(slot.mask.sum())
            if int(self.pools.filled.min()) > self.setting.warm_up:
                for _ in range(self.setting.updates_a_slot):
                    self.agents.learn(self.pools.sample(self.setting.batch, self.agents.generator))
                    self.updates += 1
        return total / count

    def _store(self, slot: tuple[torch.Tensor, ...], first_state: torch.Tensor, first_latent: torch.Tensor) -> None:
        """A slot's transitions, once it is known what follows its last task."""
        mask, state, latent, reward, action = slot
        last = mask.sum(1) - 1
        rows = range(self.groups)
        after, latent_after = state.roll(-1, 1), latent.roll(-1, 1)
        after[rows, last], latent_after[rows, last] = first_state, first_latent
        self.pools.add(mask, state, latent, after, latent_after, reward, action)

    def _stack(self, each: torch.Tensor) -> torch.Tensor:
        """(S, B, ...) as (S·B, ...)."""
        return each.reshape(self.groups, *each.shape[2:])

    def evaluate(self, seeds: Sequence[int] = HELD_OUT_SEEDS) -> list[float]:
        """Mean delay (s) of each training seed's policy on the same held-out arrivals; noted on the curve."""
        return [float(np.mean([each.mean() for each in row])) for row in self.delays_s(seeds)]

    def delays_s(self, seeds: Sequence[int] = HELD_OUT_SEEDS) -> list[list[Array]]:
        """Delays of all tasks, [training seed][held-out episode]; histories go on from training's, apart."""
        import torch

        trained, episodes, edges = len(self.seeds), len(seeds), self.cluster.edges
        arrivals = draw(self.cluster, tuple(seeds))
        worlds = [EdgeCluster(arrivals) for _ in self.seeds]
        width = self.cluster.most_tasks
        history = self.history.repeat(1, episodes, 1)  # (G, E·N, A)
        while not worlds[0].over:
            found = [states(each.slot, self.cluster).transpose(0, 1) for each in worlds]  # (B, E, N, S)
            state = torch.stack(found).reshape(self.groups, episodes * width, -1)
            action, _, denoised = self.agents.act(state, history, explore=False)
            mask = torch.as_tensor(worlds[0].slot.mask).transpose(0, 1).reshape(edges, episodes * width)
            if self.setting.method == "lad-ts":
                history = torch.where(mask.repeat(trained, 1)[..., None], denoised, history)
            chosen = action.view(trained, edges, episodes, width).transpose(1, 2).numpy()
            for world, each in zip(worlds, chosen, strict=True):
                world.step(each)
        return [each.delays_s() for each in worlds]
