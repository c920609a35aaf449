"""The learned part of `fedkd bench dispatch`: curves of LAD-TS, its rivals and ours, and what training takes."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.cli.benchmarks.dispatch_figures import held_out, oracle
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Rows, Shown, Table, at_least, at_most

if TYPE_CHECKING:
    from fedkd.planning.cluster import Arrivals
    from fedkd.planning.learning.edge_training import Training

OURS = "social-learned (ours)"
LAD = "lad-ts"
METHODS = (LAD, "d2sac", "sac", "dqn")
POINTS = (5, 10, 20, 40, 60, 100)
QUICK_POINTS = (1, 2)
SEEDS = (0, 1, 2)
EPISODES = 10  # held-out ones
NEAR_ORACLE, FASTER, FROM = 1.06, 25.0, 40
TABLE_IV = 60  # episodes after which LAD-TS has converged, by the paper
PAPER = {"lad-ts": (1.041, 60), "sac": (1.205, 200), "d2sac": (1.138, 150), "dqn": (1.301, 300)}
KEPT = ("cluster", "setting", "seeds")  # of a training that can be gone on with
SETTLED = 1.02  # within this of the last point


def tables_and_shows(request: Request) -> tuple[list[Table], list[Shown]]:
    """Mean delay over the greedy oracle's by episode, and the speed of training beside one decision at a time."""
    from fedkd.planning.cluster import ClusterSetting

    points, seeds = (QUICK_POINTS, SEEDS[:1]) if request.quick else (POINTS, SEEDS)
    arrivals = held_out(ClusterSetting(), request, EPISODES)
    best_s = float(oracle(arrivals).mean_s.mean())
    curves: Rows = {}
    trained_s: dict[str, float] = {}
    last: dict[str, Training] = {}
    curves[OURS], trained_s[OURS], unseen = _ours(request, points, seeds, arrivals, best_s)
    for method in METHODS:
        training = _train(request, method, points, seeds, arrivals)
        curves[method] = {str(each): [value / best_s for value in training.curve[each]] for each in points}
        trained_s[method] = training.training_s / training.episode / len(seeds)
        last[method] = training
    names = [str(each) for each in points]
    title = "Mean delay over the greedy oracle's by training episodes, held-out arrivals"
    tables = [Table(title, names, curves, plain=True, digits=3, chart="lines", across="training episodes")]
    tables += [beside_the_paper(curves, names, trained_s), unseen]
    speed, faster = _speed(request, last[LAD])
    worst = max(
        (_mean(curves[OURS][name]) / _mean(curves[LAD][name]) for name in names if int(name) >= FROM), default=math.nan
    )
    reached = str(TABLE_IV) if str(TABLE_IV) in names else names[-1]
    return [*tables, speed], [
        at_most(
            f"LAD-TS at {reached} episodes: mean delay over the greedy oracle's",
            _mean(curves[LAD][reached]),
            NEAR_ORACLE,
        ),
        at_most(f"ours over LAD-TS, the worst point from {FROM} episodes on", worst, 1.0),
        at_least("training: times faster than one decision at a time, with as many updates", faster, FASTER),
    ]


def notes(request: Request) -> list[str]:
    """What the figures do not say of themselves."""
    from fedkd.planning.learning.edge_agents import AgentSetting

    setting = AgentSetting()
    return [
        f"learned: {setting.updates_a_slot} updates a slot of all agents, where the paper has one after each task; "
        "policies are measured as they are trained, drawn from their own chances (DQN: its best edge)",
        "learned: the paper's Eq. 16 as printed raises alpha with the entropy: alpha has SAC's sign here; Eq. 10 as "
        f"printed overflows within an episode: x_0 is kept within {-setting.bound:g}..{setting.bound:g} at each step; "
        f"delays count in {setting.reward_unit_s:g} s; all else that Table IV gives is as there",
        "learned: ours trains on other clusters and loads than the one it is measured on; its rivals on that one",
        "learned: stable-baselines3's DQN is one agent with one decision a step, here are 20 agents with up to 50 "
        "decisions each a slot, whose rewards depend on each other; DQN is therefore in the same code as the others",
    ]


def _mean(values: list[float]) -> float:
    return statistics.mean(values) if values else math.nan


def _train(
    request: Request, method: str, points: tuple[int, ...], seeds: tuple[int, ...], arrivals: Arrivals
) -> Training:
    """One method's training, kept in OUT/dispatch-learned/METHOD and taken up again from there."""
    from fedkd.planning.cluster import ClusterSetting
    from fedkd.planning.learning import edge_files
    from fedkd.planning.learning.edge_agents import AgentSetting
    from fedkd.planning.learning.edge_training import Training

    setting, folder = AgentSetting(method=method), _folder(request, method)
    training = edge_files.read(folder)
    fresh = Training(ClusterSetting(), setting, seeds)
    if training is None or any(getattr(training, k) != getattr(fresh, k) for k in KEPT):
        training = fresh
    for until in points:
        while training.episode < until:
            training.run(min(until, training.episode + 10))
            edge_files.write(training, folder)
            request.say(f"{method}: episode {training.episode}, mean delay {training.rewards[-1]:.2f} s")
        if until not in training.curve and training.episode == until:
            training.curve[until] = training.evaluate(arrivals.seeds)
            edge_files.write(training, folder)
    return training


def _folder(request: Request, name: str) -> Path:
    return request.out / f"dispatch-learned{'-quick' if request.quick else ''}" / name


def _ours(
    request: Request, points: tuple[int, ...], seeds: tuple[int, ...], arrivals: Arrivals, best_s: float
) -> tuple[dict[str, list[float]], float, Table]:
    """(curve, seconds an episode, loads and numbers of edges that no training saw) of the learned social policy."""
    from fedkd.planning.cluster import ClusterSetting
    from fedkd.planning.dispatch_episodes import run
    from fedkd.planning.learning.social_policy import load

    others = {f"B = {edges}": ClusterSetting(edges=edges) for edges in (10, 30)}
    others |= {f"N = {tasks}": ClusterSetting(tasks=tasks) for tasks in (15, 35, 65)}
    others |= {"LAD-TS's cluster": ClusterSetting(), "random work": ClusterSetting(variant="random")}
    trained = [_train_ours(request, seed, points, arrivals) for seed in seeds]
    curve = {str(point): [each["mean_s"][str(point)] / best_s for each in trained] for point in points}
    rows: Rows = {OURS: {}, "p99": {}}
    for name, setting in others.items():
        request.say(f"ours where it never trained: {name}")
        there = held_out(setting, request, EPISODES)
        theirs = oracle(there)
        found = [run(there, load(_folder(request, "ours") / f"seed-{seed}")) for seed in seeds]
        rows[OURS][name] = [float(each.mean_s.mean() / theirs.mean_s.mean()) for each in found]
        tail_s = theirs.percentile_s(99).mean()
        rows["p99"][name] = [float(each.percentile_s(99).mean() / tail_s) for each in found]
    title = f"Ours after {points[-1]} episodes, where it never trained: mean delay over the oracle's, and p99"
    return curve, _mean([each["episode_s"] for each in trained]), Table(title, list(others), rows, plain=True, digits=3)


def _train_ours(request: Request, seed: int, points: tuple[int, ...], arrivals: Arrivals) -> dict[str, Any]:
    """One seed's mean delays by episode, and seconds an episode; kept in OUT/dispatch-learned/ours with its policy."""
    from dataclasses import asdict

    from fedkd.planning.dispatch_episodes import run
    from fedkd.planning.learning.social_training import SocialSetting, SocialTraining

    training = SocialTraining(SocialSetting(seed=seed))
    asked = {"points": list(points), "held_out": len(arrivals.seeds), "setting": asdict(training.setting)}
    path = _folder(request, "ours") / f"curve-{seed}.json"
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept["asked"] == asked:
            return kept
    mean_s = {}
    for until in points:
        training.run(until)
        mean_s[str(until)] = float(run(arrivals, training.policy).mean_s.mean())
        request.say(f"ours, seed {seed}: episode {until}, mean delay {mean_s[str(until)]:.2f} s on held-out arrivals")
    found = {"asked": asked, "mean_s": mean_s, "episode_s": training.training_s / training.episode}
    training.policy.export(_folder(request, "ours") / f"seed-{seed}")
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1), encoding="utf-8")
    os.replace(part, path)
    return found


def beside_the_paper(curves: Rows, names: list[str], trained_s: dict[str, float]) -> Table:
    columns = ["over oracle", "paper: over Opt-TS", "settled at", "paper: converged at", "s of CPU an episode"]
    rows: Rows = {}
    for method, curve in curves.items():
        level = _mean(curve[names[-1]])
        settled = next(
            int(names[k]) for k in range(len(names)) if all(_mean(curve[n]) <= SETTLED * level for n in names[k:])
        )
        ratio, episodes = PAPER.get(method, (math.nan, math.nan))
        rows[method] = {
            "over oracle": curve[names[-1]],
            "paper: over Opt-TS": [ratio],
            "settled at": [settled],
            "paper: converged at": [episodes],
            "s of CPU an episode": [trained_s[method]],
        }
    title = f"After {names[-1]} episodes, beside the paper; settled: from there on within 2% of the last or better"
    return Table(title, columns, rows, plain=True, digits=3)


def _speed(request: Request, training: Training) -> tuple[Table, float]:
    """Seconds of CPU an episode of one training seed, stacked and one decision at a time."""
    from fedkd.planning.learning.edge_agents import AgentSetting
    from fedkd.planning.learning.edge_training import Training as Trained
    from fedkd.planning.learning.one_at_a_time import measure

    setting = AgentSetting()
    stacked = Trained(training.cluster, setting, training.seeds)
    stacked.run(1)  # fills the pools
    episodes = 1 if request.quick else 3
    started, before = time.process_time(), stacked.updates
    stacked.run(1 + episodes)
    stacked_s = (time.process_time() - started) / episodes / len(stacked.seeds)
    updates = (stacked.updates - before) / episodes * training.cluster.edges
    slow = measure(training.cluster, setting, *((60, 5) if request.quick else (600, 100)))
    equal, printed = slow.episode_s(updates), slow.episode_s(slow.decisions)
    column = "s of CPU an episode"
    rows: Rows = {
        f"stacked, {len(stacked.seeds)} seeds side by side": {column: [stacked_s], "agent updates": [updates]},
        "one at a time, as many updates": {column: [equal], "agent updates": [updates]},
        "one at a time, an update a task": {column: [printed], "agent updates": [slow.decisions]},
    }
    title = "LAD-TS: training one episode of one seed; one at a time is extrapolated from its first decisions"
    return Table(title, [column, "agent updates"], rows, plain=True, digits=2), equal / stacked_s
