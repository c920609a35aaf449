"""Algorithm 1 of LAD-TS as it is written, one decision after the other: what the stacked training is timed against."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from fedkd.planning.cluster import ClusterSetting, draw
from fedkd.planning.learning.edge_agents import Agents, AgentSetting
from fedkd.planning.learning.edge_cluster import EdgeCluster
from fedkd.planning.learning.edge_memory import Pools
from fedkd.planning.learning.edge_training import scales


@dataclass(frozen=True)
class OneAtATime:
    """Seconds of CPU: of one decision (observe, denoise, store), of one update of one agent; `decisions` an episode."""

    decision_s: float
    update_s: float
    decisions: float

    def episode_s(self, updates: float) -> float:
        """An episode with `updates` updates of single agents."""
        return self.decisions * self.decision_s + updates * self.update_s


def measure(cluster: ClusterSetting, setting: AgentSetting, decisions: int = 200, updates: int = 40) -> OneAtATime:
    """Time the first `decisions` of an episode and `updates` of one agent; an episode's time is extrapolated."""
    import torch

    edges = cluster.edges
    arrivals = draw(cluster, [0])
    slot, scale = EdgeCluster(arrivals).slot, scales(cluster)
    agents = [Agents(setting, 1, 2 + edges, edges, seed) for seed in range(edges)]
    pools = [Pools(1, setting.pool, 2 + edges, edges) for _ in agents]
    history = torch.randn(edges, cluster.most_tasks, 1, 1, edges)
    backlog, one = slot.queue[0].copy(), torch.ones(1, 1, dtype=torch.bool)
    started, done = time.process_time(), 0
    while done < decisions:
        for b, agent in enumerate(agents):
            for n in np.flatnonzero(slot.mask[0, b])[: decisions - done]:
                seen = np.concatenate(((slot.data_bits[0, b, n] / 1e6, slot.work[0, b, n]), slot.queue[0]))
                state = torch.as_tensor(seen / scale, dtype=torch.float32)[None, None]
                action, latent, denoised = agent.act(state, history[b, n])
                edge = int(action)
                delay_s = (backlog[edge] + slot.work[0, b, n]) / slot.capacity[edge]
                delay_s += slot.transfer_s[0, b, n] * (edge != b)
                backlog[edge] += slot.work[0, b, n]
                history[b, n] = denoised
                reward = torch.tensor([[-float(delay_s)]])
                pools[b].add(one, state, latent, state, latent, reward, action)
                done += 1
    decision_s = (time.process_time() - started) / done
    agents[0].learn(pools[0].sample(setting.batch, agents[0].generator))
    started = time.process_time()
    for _ in range(updates):
        agents[0].learn(pools[0].sample(setting.batch, agents[0].generator))
    update_s = (time.process_time() - started) / updates
    return OneAtATime(decision_s, update_s, float(arrivals.mask.sum()))
