"""The experience pools of all agents in one block: LAD-TS's transition tuples, oldest out first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Pools:
    """G ring buffers of `size` transitions (s, x, s', x', r, a); numbers of a row are float32."""

    def __init__(self, agents: int, size: int, states: int, actions: int) -> None:
        import torch

        self.widths = [states, actions, states, actions, 1, 1]
        self.size, self.agents = size, agents
        self.rows = torch.zeros(agents * size, sum(self.widths))
        self.place = torch.zeros(agents, dtype=torch.long)
        self.filled = torch.zeros(agents, dtype=torch.long)

    def add(self, mask: torch.Tensor, *columns: torch.Tensor) -> None:
        """Store the tasks that `mask` (G, N) has: s (G, N, S), x (G, N, A), s', x', r (G, N), a (G, N)."""
        import torch

        agent, task = mask.nonzero(as_tuple=True)
        rank = mask.cumsum(1) - 1
        where = (self.place[agent] + rank[agent, task]) % self.size
        found = [each[agent, task].reshape(len(agent), -1).float() for each in columns]
        self.rows[agent * self.size + where] = torch.cat(found, 1)
        count = mask.sum(1)
        self.place = (self.place + count) % self.size
        self.filled = (self.filled + count).clamp(max=self.size)

    def sample(self, count: int, generator: torch.Generator) -> list[torch.Tensor]:
        """`count` transitions of every agent, with repetition: (G, K, width) each, r and a (G, K)."""
        import torch

        drawn = (torch.rand(self.agents, count, generator=generator) * self.filled[:, None]).long()
        where = (torch.arange(self.agents)[:, None] * self.size + drawn).flatten()
        rows = self.rows.index_select(0, where).view(self.agents, count, -1)
        state, latent, after, latent_after, reward, action = rows.split(self.widths, -1)
        return [state, latent, after, latent_after, reward[..., 0], action[..., 0].long()]
