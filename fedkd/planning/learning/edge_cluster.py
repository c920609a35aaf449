"""Which edge serves each task, as a vectorised environment: one slot of all episodes a step (LAD-TS, section III)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.planning.cluster import TRAINING_SEEDS, Arrivals, ClusterSetting, draw
from fedkd.planning.cluster_queues import Served, imposed_s, serve
from fedkd.planning.system import PlanningError

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

Array = np.ndarray

SEEN = ("queue", "speed", "mask", "work", "data_bits", "transfer_s", "model")  # of a slot, in observations


@dataclass(frozen=True)
class Slot:
    """What is known when slot `t` starts, in S episodes; work in Gcycles, speed in Gcycle/s.

    Per task (S, B, N), 0 where `mask` is False: `work`, `data_bits`, `transfer_s` (if it leaves its base station),
    `model`. Per edge: `queue` (S, B), `speed` (S, B), 0 while it is down; `capacity` (B,), `cached` (B, models).
    An agent with slot-start information uses its own row b of the tasks; one with in-slot information all of them.
    """

    t: int
    mask: Array
    work: Array
    data_bits: Array
    transfer_s: Array
    model: Array
    queue: Array
    speed: Array
    capacity: Array
    cached: Array
    slot_s: float
    miss_s: float

    @property
    def home(self) -> Array:
        """The base station (B, 1) of each row of tasks."""
        return np.arange(self.mask.shape[1])[:, None]

    def load(self, edge: Array) -> Array:
        """Work (S, B, N) that tasks bring to the edges that `edge` (S, B, N) names, with a missing model's fetching."""
        if self.miss_s == 0:
            return self.work
        return self.work + ~self.cached[edge, self.model] * self.miss_s * self.capacity[edge] * self.mask

    def features(self) -> Array:
        """Eq. 6 for every task (S, B, N, 2 + B): data (Mbit), work (Gcycles), queues of all edges (Gcycles)."""
        shape = (*self.mask.shape, self.queue.shape[1])
        queues = np.broadcast_to(self.queue[:, None, None, :], shape)
        own = np.stack((self.data_bits / 1e6, self.work), axis=-1)
        return np.concatenate((own, queues), axis=-1)


class EdgeCluster:
    """The environment without gymnasium: `slot = reset()`, then `served = step(edge)` until `over`.

    `slot` is what is known now. After the last step `imposed()` says what each decision cost the others.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self.setting = arrivals.cluster.setting
        self.reset()

    def reset(self) -> Slot:
        """Back to empty queues and the first slot of the same arrivals."""
        episodes, slots, edges, _ = self.arrivals.mask.shape
        self.t = 0
        self.queues = np.zeros((episodes, slots + 1, edges))
        self.received = np.zeros((episodes, slots, edges), int)
        self.history: list[tuple[Array, Served]] = []
        self.slot = self._slot()
        return self.slot

    @property
    def over(self) -> bool:
        """Whether every slot has been run."""
        return self.t >= self.arrivals.mask.shape[1]

    def step(self, edge: Array) -> Served:
        """Send each task to an edge: `edge` (S, B, N) ints, whatever where there is no task.

        Raises PlanningError for an edge that is not there, a shape that does not fit, or an episode that is over.
        """
        if self.over:
            raise PlanningError("the episode is over; call reset()")
        slot, edge = self.slot, np.asarray(edge)
        if edge.shape != slot.mask.shape or edge.dtype.kind not in "iu":
            raise PlanningError(f"the action is {edge.dtype} {edge.shape}; give whole numbers {slot.mask.shape}")
        edge = np.where(slot.mask, edge, 0)
        if edge.min() < 0 or edge.max() >= self.setting.edges:
            raise PlanningError(f"the action names edge {edge.max()}; give 0 to {self.setting.edges - 1}")
        served = serve(
            slot.queue,
            self._speeds(),
            slot.mask,
            slot.load(edge),
            edge,
            np.where(edge == slot.home, 0.0, slot.transfer_s),
            self.setting.slot_s,
        )
        self.received[:, self.t], self.queues[:, self.t + 1] = served.received, served.queue
        self.history.append((edge, served))
        self.t += 1
        if not self.over:
            self.slot = self._slot()
        return served

    def imposed(self) -> list[Array]:
        """Delay (S, B, N) in s that each task imposed on all later ones, a slot each; only once the episode is over.

        The social cost of a decision is its `delay_s` and this. Raises PlanningError earlier, or with failures.
        """
        if not self.over or self.setting.failure:
            raise PlanningError("what tasks impose is known once the episode is over, for edges that do not fail")
        speed = self.arrivals.cluster.speed
        return [
            imposed_s(t, edge, served.load, served.behind, self.queues, self.received, speed)
            for t, (edge, served) in enumerate(self.history)
        ]

    def delays_s(self) -> list[Array]:
        """Delays of all tasks so far, an array an episode."""
        masks = self.arrivals.mask[:, : self.t]
        delays = np.stack([served.delay_s for _, served in self.history], axis=1)
        return [delays[s][masks[s]] for s in range(len(masks))]

    def _speeds(self) -> Array:
        """(S, K, B): this slot's speed and, where edges fail, those of all later slots and after the episode."""
        speed = self.arrivals.speed
        if not self.setting.failure:
            return speed[:, self.t : self.t + 1]
        last = np.broadcast_to(self.arrivals.cluster.speed, (len(speed), 1, speed.shape[2]))
        return np.concatenate((speed[:, self.t :], last), axis=1)

    def _slot(self) -> Slot:
        found, t, setting = self.arrivals, self.t, self.setting
        return Slot(
            t=t,
            mask=found.mask[:, t],
            work=found.work[:, t],
            data_bits=found.data_bits[:, t],
            transfer_s=found.transfer_s[:, t],
            model=found.model[:, t],
            queue=self.queues[:, t],
            speed=found.speed[:, t],
            capacity=found.cluster.speed,
            cached=found.cluster.cached,
            slot_s=setting.slot_s,
            miss_s=setting.miss_s,
        )


def make(setting: ClusterSetting | None = None, episodes: int = 1, seeds: Sequence[int] | None = None) -> VectorEnv:
    """`EdgeCluster` as a gymnasium `VectorEnv`: `episodes` environments, one slot a step, action (S, B, N).

    Observations are a slot's `queue`, `speed`, `mask`, `work`, `data_bits`, `transfer_s` and `model`; the reward of
    an environment is minus its tasks' delays summed (Eq. 9), and `info` has them by task (`delay_s`, `own_s`,
    `behind`). `seeds` fixes the arrivals, one an environment; otherwise every reset draws new training seeds.
    Raises PlanningError where gymnasium is not installed.
    """
    try:
        import gymnasium
        from gymnasium.spaces import Box, Dict, MultiBinary, MultiDiscrete
        from gymnasium.vector import AutoresetMode, VectorEnv
        from gymnasium.vector.utils import batch_space
    except ImportError as error:
        raise PlanningError('gymnasium is not installed; run: pip install "fedkd[rl]"') from error
    if seeds is not None and len(seeds) != episodes:
        raise PlanningError(f"seeds={list(seeds)} must be one for each of the {episodes} episodes")
    chosen = setting or ClusterSetting()
    edges, width = chosen.edges, chosen.most_tasks

    class EdgeClusterEnv(VectorEnv):
        """All base stations' decisions of one slot are one action."""

        metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

        def __init__(self) -> None:
            self.num_envs = episodes
            per_edge, per_task = Box(0, np.inf, (edges,), np.float64), Box(0, np.inf, (edges, width), np.float64)
            single: dict[str, gymnasium.Space] = {
                "queue": per_edge,
                "speed": per_edge,
                "mask": MultiBinary((edges, width)),
            }
            single |= dict.fromkeys(("work", "data_bits", "transfer_s", "model"), per_task)
            self.single_observation_space = Dict(single)
            self.single_action_space = MultiDiscrete(np.full((edges, width), edges))
            self.observation_space = batch_space(self.single_observation_space, episodes)
            self.action_space = batch_space(self.single_action_space, episodes)

        def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Array], dict]:
            super().reset(seed=seed)
            fixed = seeds or [int(s) for s in self.np_random.integers(0, len(TRAINING_SEEDS), episodes)]
            self.world = EdgeCluster(draw(chosen, fixed))
            return self._seen(), {}

        def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict]:
            served = self.world.step(actions)
            ended = np.full(episodes, self.world.over)
            info = {"delay_s": served.delay_s, "own_s": served.own_s, "behind": served.behind, "queue": served.queue}
            return self._seen(), -served.delay_s.sum(axis=(1, 2)), ended, np.zeros(episodes, bool), info

        def _seen(self) -> dict[str, Array]:
            slot = self.world.slot
            found = {name: getattr(slot, name).astype(float) for name in SEEN}
            return found | {"mask": slot.mask.astype(np.int8)}

    return EdgeClusterEnv()
