"""LAD-TS, D2SAC, SAC and DQN: one agent a base station, and the agents of all training seeds as one stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedkd.planning.learning import discrete_sac as sac
from fedkd.planning.learning import latent_diffusion as diffusion
from fedkd.planning.learning.stacked import follow, forward, layers
from fedkd.planning.system import PlanningError

if TYPE_CHECKING:
    import torch

    from fedkd.planning.learning.stacked import Weights

METHODS = {
    "lad-ts": "denoises the history of action probabilities (the paper's)",
    "d2sac": "denoises Gaussian noise",
    "sac": "soft actor-critic with a perceptron",
    "dqn": "Q-learning with chance epsilon of any edge",
}


@dataclass(frozen=True)
class AgentSetting:
    """Table IV, then what it leaves open.

    `updates_a_slot`: the paper trains after every task, 25 times a slot in the mean; agents of a slot decide side by
    side here, and so few updates of all agents stand for them. Rewards count in `reward_unit_s`. `bound`: see
    `latent_diffusion.denoise`. `squared` and `entropy_as_printed`: see `discrete_sac`. `exploring_episodes`: until
    DQN's epsilon has fallen to `least_chance`.
    """

    method: str = "lad-ts"
    hidden: int = 20
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    entropy_rate: float = 3e-4
    discount: float = 0.95
    soft: float = 0.005
    batch: int = 64
    denoising_steps: int = 5
    temperature: float = 0.05
    target_entropy: float = -1.0
    pool: int = 1000
    warm_up: int = 300
    updates_a_slot: int = 2
    bound: float = 1.0
    reward_unit_s: float = 10.0
    squared: bool = True
    entropy_as_printed: bool = False
    exploring_episodes: int = 50
    least_chance: float = 0.05

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PlanningError(f"method={self.method!r} is not known; give {', '.join(METHODS)}")
        for name in ("hidden", "batch", "denoising_steps", "pool", "updates_a_slot", "exploring_episodes"):
            if getattr(self, name) < 1:
                raise PlanningError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.warm_up < self.pool:
            raise PlanningError(f"warm_up={self.warm_up} must be less than pool={self.pool}")


class Agents:
    """G agents with A edges to choose from; states are (G, K, S), actions (G, K), latents (G, K, A)."""

    def __init__(self, setting: AgentSetting, count: int, states: int, actions: int, seed: int = 0) -> None:
        import torch

        self.setting, self.count, self.states, self.actions = setting, count, states, actions
        self.generator = torch.Generator().manual_seed(seed)
        hidden = setting.hidden
        diffuses = setting.method in ("lad-ts", "d2sac")
        plain = states, hidden, hidden, actions
        critics = 1 if setting.method == "dqn" else 2
        self.critic = layers(plain, critics * count, self.generator)
        self.target: Weights = [each.detach().clone() for each in self.critic]
        sizes = diffusion.actor_sizes(states, actions, hidden) if diffuses else plain
        self.actor: Weights = [] if setting.method == "dqn" else layers(sizes, count, self.generator)
        self.log_temperature = torch.full((count, 1), setting.temperature).log().requires_grad_()
        self.chance = 1.0  # DQN's epsilon
        self.critic_rule = torch.optim.Adam(self.critic, setting.critic_rate, foreach=True)
        if self.actor:
            self.actor_rule = torch.optim.Adam(self.actor, setting.actor_rate, foreach=True)
            self.entropy_rule = torch.optim.Adam([self.log_temperature], setting.entropy_rate)

    def logits(self, state: torch.Tensor, latent: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """x_0 (G, K, A), or what stands for it: SAC's output, DQN's values."""
        setting = self.setting
        if setting.method in ("sac", "dqn"):
            return forward(self.actor or self.critic, state)
        noise = self._chain_noise(state) if noise is None else noise
        return diffusion.denoise(self.actor, state, latent, setting.denoising_steps, setting.bound, noise)

    def start(self, state: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """x_I: the history X_b[n] for LAD-TS (line 9 of Algorithm 1), noise for D2SAC."""
        return self._noise(history.shape) if self.setting.method == "d2sac" else history

    def act(
        self, state: torch.Tensor, history: torch.Tensor, explore: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(actions (G, K), x_I, x_0): drawn from the softmax of x_0, which is the policy, also after training.

        DQN takes the best edge, but for its epsilon while it explores.
        """
        import torch

        with torch.no_grad():
            latent = self.start(state, history)
            found = self.logits(state, latent)
            if self.setting.method == "dqn":
                best = found.argmax(-1)
                if not explore:
                    return best, latent, found
                anything = torch.randint(self.actions, best.shape, generator=self.generator)
                lot = torch.rand(best.shape, generator=self.generator) < self.chance
                return torch.where(lot, anything, best), latent, found
            # the largest of logits + Gumbel noise is a draw from their softmax
            draw = torch.rand(found.shape, generator=self.generator).clamp_(min=1e-12).log_().neg_().log_()
            return (found - draw).argmax(-1), latent, found

    def learn(self, batch: list[torch.Tensor]) -> None:
        """One update of every agent from its K transitions (Eqs. 14-17)."""
        import torch

        state, latent, after, latent_after, reward, action = batch
        setting = self.setting
        noise = self._chain_noise(state)  # one for both chains of an update: no loss has both
        with torch.no_grad():
            values = self._values(self.target, after)
            if setting.method == "dqn":
                wanted = reward + setting.discount * values[0].amax(-1)
            else:
                following = self.logits(after, latent_after, noise)
                wanted = sac.target(reward, following, values, self.log_temperature.exp(), setting.discount)
        values = self._values(self.critic, state)
        self.critic_rule.zero_grad()
        sac.critic_loss(values, action, wanted).backward()
        self.critic_rule.step()
        if self.actor:
            temperature = self.log_temperature.detach().exp()
            logits = self.logits(state, latent, noise)
            loss, uncertain = sac.actor_loss(logits, values.detach(), temperature, setting.squared)
            self.actor_rule.zero_grad()
            loss.backward()
            self.actor_rule.step()
            self.entropy_rule.zero_grad()
            sac.temperature_loss(
                self.log_temperature, uncertain, setting.target_entropy, setting.entropy_as_printed
            ).backward()
            self.entropy_rule.step()
        follow(self.target, self.critic, setting.soft)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that training changes but the optimisers' moments, by name."""
        found = {"log_temperature": self.log_temperature}
        for name in ("actor", "critic", "target"):
            found |= {f"{name}.{place}": each for place, each in enumerate(getattr(self, name))}
        return {name: each.detach() for name, each in found.items()}  # the same memory

    def _values(self, weights: Weights, state: torch.Tensor) -> torch.Tensor:
        """(2, G, K, A) of both critics; (1, G, K, A) of DQN's only one."""
        critics = weights[0].shape[0] // self.count
        both = state.repeat(critics, 1, 1) if critics > 1 else state
        return forward(weights, both).view(critics, *state.shape[:2], self.actions)

    def _chain_noise(self, state: torch.Tensor) -> torch.Tensor | None:
        """The epsilon of Eq. 10 for one chain a state."""
        steps = self.setting.denoising_steps if self.setting.method in ("lad-ts", "d2sac") else 1
        return self._noise((steps - 1, *state.shape[:2], self.actions)) if steps > 1 else None

    def _noise(self, shape: tuple[int, ...]) -> torch.Tensor:
        import torch

        return torch.randn(shape, generator=self.generator)
