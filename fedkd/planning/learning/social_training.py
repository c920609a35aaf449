"""Train the social policy: after each episode every choice is weighed by what it would have cost everybody."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from fedkd.planning.cluster import ClusterSetting, draw
from fedkd.planning.dispatch_episodes import decide
from fedkd.planning.dispatch_past import Past
from fedkd.planning.learning.edge_cluster import EdgeCluster
from fedkd.planning.learning.edge_training import SEED_STRIDE
from fedkd.planning.learning.social_costs import social_costs_s
from fedkd.planning.learning.social_policy import SocialPolicy, features, fresh, known_load, rule_logits
from fedkd.planning.system import PlanningError

if TYPE_CHECKING:
    import torch

Array = np.ndarray
TASKS = (50, 10, 50, 30, 50, 70, 50, 20, 40, 60)  # N of one training episode after the other


@dataclass(frozen=True)
class SocialSetting:
    """What training goes by.

    `sizes` of tasks are weighed a slot; `entropy` is in units of the mean cost. After each episode there are
    `updates` steps, each on one of the last `remembered` episodes; the policy is the weights' running mean over
    `smooth` episodes.
    `vary`: another cluster and load every episode, no two alike.
    """

    rate: float = 2e-2
    updates: int = 4
    sizes: int = 10
    entropy: float = 0.02
    remembered: int = 8
    smooth: float = 8.0
    vary: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("updates", "sizes"):
            if getattr(self, name) < 1:
                raise PlanningError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass
class SocialTraining:
    """One policy in training; `run` goes on where it stopped."""

    setting: SocialSetting = field(default_factory=SocialSetting)
    cluster: ClusterSetting = field(default_factory=ClusterSetting)
    episode: int = 0
    training_s: float = 0.0
    delays_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        import torch

        self.weights = {name: torch.as_tensor(each).requires_grad_() for name, each in fresh(self.setting.seed).items()}
        self.rule = torch.optim.Adam(self.weights.values(), self.setting.rate)
        self.smoothed = {name: each.detach().clone() for name, each in self.weights.items()}
        self.memory: list[tuple[torch.Tensor, ...]] = []

    @property
    def policy(self) -> SocialPolicy:
        """What has been learned so far."""
        return SocialPolicy({name: each.numpy().copy() for name, each in self.smoothed.items()})

    def run(self, episodes: int) -> None:
        """Train until `episodes` episodes are done."""
        while self.episode < episodes:
            started = time.process_time()
            self._episode()
            self.episode += 1
            self.training_s += time.process_time() - started

    def _episode(self) -> None:
        import torch

        number = self.setting.seed * SEED_STRIDE + self.episode
        cluster = self.cluster
        if self.setting.vary:
            cluster = replace(cluster, tasks=TASKS[self.episode % len(TASKS)], cluster_seed=1_000 + number)
        world = EdgeCluster(draw(cluster, [number]))
        rng = np.random.default_rng([number, 5])
        policy = SocialPolicy({name: each.detach().numpy().copy() for name, each in self.weights.items()})
        past = Past(1, cluster.edges)
        loads, sent = [], []
        while not world.over:
            slot = world.slot
            past.see(slot)
            seen = past.situation(slot, slot.queue, slice(0, cluster.edges), rng, in_slot=False)
            loads.append(float(seen.load.mean()))
            sent.append(world.step(decide(slot, past, policy, "slot-start", rng)).sent)
        self.delays_s.append(float(world.delays_s()[0].mean()))
        self._remember(world, np.array(loads), np.concatenate(sent)[None])
        for _ in range(self.setting.updates):
            self._learn(*self.memory[rng.integers(len(self.memory))])
        with torch.no_grad():
            for name, each in self.smoothed.items():
                each.lerp_(self.weights[name], 1 / self.setting.smooth)

    def _remember(self, world: EdgeCluster, load: Array, sent: Array) -> None:
        """Keep an episode as what `_learn` needs: shares of tasks, their social costs, and what the policy saw."""
        import torch

        arrivals, setting = world.arrivals, self.setting
        here = arrivals.mask[0]
        work = arrivals.work[0][here]
        bounds = np.quantile(work, np.linspace(0, 1, setting.sizes + 1))
        sizes = (bounds[1:] + bounds[:-1]) / 2
        kind = np.clip(np.searchsorted(bounds, work, side="right") - 1, 0, setting.sizes - 1)
        slots = np.nonzero(here)[0]
        count = np.bincount(slots * setting.sizes + kind, minlength=len(load) * setting.sizes)
        share = (count / count.sum()).reshape(len(load), setting.sizes)
        speed, slot_s = arrivals.cluster.speed, world.setting.slot_s
        price = social_costs_s(sizes, world.queues, sent, world.received, speed, slot_s)[0]
        rows = np.broadcast_to(speed, (len(load), len(speed)))
        work = np.broadcast_to(sizes, (len(load), setting.sizes))
        found, *times = features(world.queues[0, :-1], rows, work, load, slot_s)
        plain = (share, price, found, *times, np.log(rows)[:, None], known_load(load)[:, None, None])
        self.memory.append(tuple(torch.as_tensor(each, dtype=torch.float32) for each in plain))
        del self.memory[: -setting.remembered]

    def _learn(self, share: torch.Tensor, price: torch.Tensor, *known: torch.Tensor) -> None:
        """A step down the expected social cost of all choices of an episode, taken or not."""
        import torch

        log = self._log_chances(*known)
        chance = log.exp()
        usual = (chance.detach() * price).sum(-1, keepdim=True)
        scale = (share[..., None] * usual).sum()
        expected = ((chance * (price - usual)).sum(-1) * share).sum() / scale
        uncertain = -((chance * log).sum(-1) * share).sum()
        self.rule.zero_grad()
        (expected - self.setting.entropy * uncertain).backward()
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), 1.0)
        self.rule.step()

    def _log_chances(self, inputs: torch.Tensor, *known: torch.Tensor) -> torch.Tensor:
        """log pi (T, W, B), as `SocialPolicy.logits` has it; `known`: x, w/f, log f, load."""
        import torch

        w = self.weights
        wait, takes, log_speed, load = known
        hidden = (inputs @ w["w1"] + w["b1"]).relu()
        hidden = (hidden @ w["w2"] + w["b2"]).relu()
        return (
            (hidden @ w["w3"])[..., 0] + rule_logits(w["rule"], wait, takes, log_speed, load, torch.exp)
        ).log_softmax(-1)
