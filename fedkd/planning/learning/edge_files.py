"""A training's state on disk as safetensors and JSON, whole or not at all, so that it goes on where it stopped."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.planning.cluster import ClusterSetting
from fedkd.planning.learning.edge_agents import AgentSetting
from fedkd.planning.learning.edge_training import Training
from fedkd.planning.system import PlanningError

if TYPE_CHECKING:
    import torch

NAME = "training"
FACTS = ("episode", "training_s", "updates", "rewards")


def write(training: Training, folder: Path) -> None:
    """Leave FOLDER/training.safetensors, with what is no tensor as JSON in its header."""
    from safetensors.torch import save_file

    facts: dict[str, Any] = {name: getattr(training, name) for name in FACTS}
    facts |= {"cluster": asdict(training.cluster), "setting": asdict(training.setting), "seeds": list(training.seeds)}
    facts |= {"curve": {str(key): value for key, value in training.curve.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{NAME}.safetensors.part"
    tensors = {name: each.detach().contiguous().clone() for name, each in _tensors(training).items()}
    save_file(tensors, part, metadata={"facts": json.dumps(facts)})
    os.replace(part, folder / f"{NAME}.safetensors")


def read(folder: Path) -> Training | None:
    """The training that `write` left in FOLDER; None where there is none. Raises PlanningError for anything else."""
    import torch
    from safetensors import SafetensorError, safe_open

    path = folder / f"{NAME}.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        cluster: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in facts["cluster"].items()}
        training = Training(ClusterSetting(**cluster), AgentSetting(**facts["setting"]), tuple(facts["seeds"]))
        for name in FACTS:
            setattr(training, name, facts[name])
        training.curve = {int(key): value for key, value in facts["curve"].items()}
        agents = training.agents
        for rule, weights in _rules(training).items():
            for place, weight in enumerate(weights):
                names = ("step", "exp_avg", "exp_avg_sq")
                if f"{rule}.{place}.step" in stored:
                    kept = {name: stored[f"{rule}.{place}.{name}"].clone() for name in names}
                    getattr(agents, rule).state[weight] = kept
        with torch.no_grad():
            for name, each in _plain(training).items():
                each.copy_(stored[name])
        agents.generator.set_state(stored["generator"])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PlanningError(f"{path} holds no training that can go on ({error}); delete it to start again") from error
    return training


def _rules(training: Training) -> dict[str, list[torch.Tensor]]:
    """Optimisers by name, with the tensors that they change."""
    agents = training.agents
    found = {"critic_rule": agents.critic}
    if agents.actor:
        found |= {"actor_rule": agents.actor, "entropy_rule": [agents.log_temperature]}
    return found


def _plain(training: Training) -> dict[str, torch.Tensor]:
    pools = training.pools
    own = {"history": training.history, "rows": pools.rows, "place": pools.place, "filled": pools.filled}
    return training.agents.tensors() | own


def _tensors(training: Training) -> dict[str, torch.Tensor]:
    agents = training.agents
    found = _plain(training) | {"generator": agents.generator.get_state()}
    for rule, weights in _rules(training).items():
        for place, weight in enumerate(weights):
            state = getattr(agents, rule).state.get(weight, {})
            found |= {f"{rule}.{place}.{name}": value for name, value in state.items()}
    return found
