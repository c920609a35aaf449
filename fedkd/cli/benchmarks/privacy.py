"""`fedkd bench privacy`: what a student is worth beside what an attacker learns of the private pictures, by synthesis.

Members are the users' private pictures; the others are pictures of the same concepts that nobody trained on. An
attack is on the adapter of an edge, which the cloud sees, and on the student, which everybody sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.cli.benchmarks.cells import Cell, Facts, carry_out_all, mean, number
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Table, at_least, at_most

if TYPE_CHECKING:
    import numpy as np

    from fedkd.cli.benchmarks.materials import Materials

DEFAULT, BARE = "default (both, strength 0.5)", "private pictures, no synthesis"
PRIVATE = "personalised, differential privacy with epsilon 8"
STRENGTHS = {f"image to image, strength {strength:g}": strength for strength in (0.2, 0.35, 0.5, 0.65, 0.8, 0.9)}
SETTINGS: dict[str, list[str]] = {
    **{
        name: ["synthesis.method=image_to_image", f"synthesis.strength={strength}"]
        for name, strength in STRENGTHS.items()
    },
    "personalised text to image": ["synthesis.method=text_to_image"],
    PRIVATE: ["synthesis.method=text_to_image", "finetune.dp.epsilon=8"],
    DEFAULT: [],
    BARE: [],
}
QUICK_SETTINGS = (DEFAULT, BARE)
QUICK = ["synthesis.personal_steps=20", "synthesis.samples=20", "synthesis.seeds_per_image=1", "finetune.steps=30"]
QUICK += ["distillation.steps=30", "distillation.replay=40", "evaluation.samples_per_concept=4"]
SEEDS = (0, 1)
ATTACKS = ("threshold", "reference")
ATTACKED = [("base", "threshold"), *((model, kind) for model in ("adapter", "student") for kind in ATTACKS)]
# Fixed before anything was measured: a student that is made for everybody should let an attacker who holds a picture
# and its caption guess right in at most 6 of 10 pairs, and the edge's adapter should tell less than the adapter that
# would be trained on the private pictures themselves.
STUDENT_AUC = 0.6
UTILITY = {
    "taught": "taught",
    "known": "known",
    "refused_share": "refused",
    "distance_mean": "pixels",
    "private_distance_mean": "pixels, private",
    "feature_distance_mean": "features",
    "private_feature_distance_mean": "features, private",
}
HELD_OUT = ("base", "judge")  # splits of the digits that no user has; the base model never saw these concepts


def run(request: Request) -> Result:
    """Each setting of synthesis by seed; `seeds=N` among the overrides changes how many. What is done is kept."""
    overrides = [each for each in request.overrides if not each.startswith("seeds=")]
    count = next((int(each.partition("=")[2]) for each in request.overrides if each.startswith("seeds=")), len(SEEDS))
    seeds = list(range(1 if request.quick else count))
    names = [name for name in SETTINGS if not request.quick or name in QUICK_SETTINGS]
    cells: dict[Any, Cell] = {}
    for seed in seeds:
        for name in names:
            cells[name, seed] = cell(name, seed, [*(QUICK if request.quick else []), *overrides], request.out)
    found = carry_out_all(
        list(cells),
        partial(carried_out, cells),
        jobs=request.jobs,
        threads=1,
        say=lambda key, facts: request.say(f"{key[0]}, seed {key[1]}: {said(facts)}"),
    )
    return result(request, names, seeds, found)


def carried_out(cells: dict[Any, Cell], key: Any) -> Facts:
    """One cell's figures."""
    return cells[key].carry_out()


def said(facts: Facts) -> str:
    """A cell in a line."""
    if "failed" in facts:
        return str(facts["failed"])
    return f"taught {100 * facts['taught']:.0f}%, AUC of the student {best(facts, 'student', 'auc'):.3f}"


def cell(name: str, seed: int, overrides: list[str], out: Path) -> Cell:
    """One setting at one seed; its materials lie beside its figures."""
    from fedkd.recipe import load_recipe

    recipe = load_recipe("quickstart", [*SETTINGS[name], *overrides, f"run.seed={seed}"])
    short = "".join(c if c.isalnum() else "-" for c in name)
    return Cell(short, recipe, bare if name == BARE else protected, out / "privacy" / f"{short}-{seed}")


def protected(cell: Cell) -> Facts:
    """The chain as users, edges and cloud run it."""
    from fedkd.cli.benchmarks.materials import gather

    return measured(cell.recipe, gather(cell.recipe, place(cell), lambda text: None))


def place(cell: Cell) -> Path:
    """Where materials lie: by recipe, so that changed settings never meet old pictures."""
    return cell.folder / "materials" / cell.identity


def bare(cell: Cell) -> Facts:
    """The same chain where edges are given the private pictures: what synthesis protects from."""
    from datasets import concatenate_datasets

    from fedkd.cli.benchmarks.materials import Materials, pipeline
    from fedkd.data.partition import edge_of, partition
    from fedkd.data.sources import load_images
    from fedkd.distillation.pictures import draw_replay
    from fedkd.training.finetune import finetune

    recipe = cell.recipe
    shares = partition(load_images(recipe), recipe)
    by_edge: dict[str, list[Any]] = {}
    for user, share in enumerate(shares):
        by_edge.setdefault(f"edge-{edge_of(user, recipe)}", []).append(share)
    sets = {name: concatenate_datasets(parts) for name, parts in by_edge.items()}
    adapters = {
        name: finetune(pipeline(recipe), pictures, recipe.finetune, seed=recipe.run.seed)[0]
        for name, pictures in sets.items()
    }
    return measured(
        recipe, Materials(sets, adapters, draw_replay(pipeline(recipe), recipe, seed=recipe.run.seed), shares)
    )


def measured(recipe: Any, materials: Materials) -> Facts:
    """Accuracy of the student, the audits' means, and both attacks on adapters and student."""
    from fedkd.cli.benchmarks.materials import pipeline
    from fedkd.cli.benchmarks.students import scores
    from fedkd.distillation.distil import distil
    from fedkd.distillation.teachers import BASE

    pictures = {name: part.select_columns(["image", "caption"]) for name, part in materials.sets.items()}
    replay = materials.replay.select_columns(["image", "caption"]).cast(next(iter(pictures.values())).features)
    student = distil(
        pipeline(recipe), {**pictures, BASE: replay}, materials.adapters, recipe, seed=recipe.run.seed
    ).student
    keys = [key for key in UTILITY if key not in ("taught", "known")]
    audits = {key: mean(audit[key] for audit in materials.audits) for key in keys if materials.audits}
    return {**scores(recipe, student), **audits, "attacks": attacks(recipe, materials, student)}


def attacks(recipe: Any, materials: Materials, student: bytes) -> Facts:
    """{"base" | "adapter" | "student": {attack: {"auc", "tpr"}}}; an adapter's members are those of its own users."""
    from datasets import concatenate_datasets

    from fedkd.data.captions import concept_of
    from fedkd.data.partition import edge_of

    others = held_out(recipe)
    members = concatenate_datasets([share.select_columns(others.column_names) for share in materials.shares])
    edges = [f"edge-{edge_of(user, recipe)}" for user, share in enumerate(materials.shares) for _ in range(len(share))]
    groups = [str(concept_of(recipe.prompts, text)) for text in [*members["caption"], *others["caption"]]]
    base = losses(recipe, members, others, None)
    found: Facts = {
        "base": {"threshold": outcome(base, base, groups)["threshold"]},  # trained on neither: what chance looks like
        "student": outcome(base, losses(recipe, members, others, student), groups),
    }
    by_edge = {}
    for name, adapter in materials.adapters.items():
        mine = [row for row, edge in enumerate(edges) if edge == name]
        rows = [*mine, *range(len(members), len(groups))]
        seen = losses(recipe, members, others, adapter)
        part = ((base[0][mine], base[1]), (seen[0][mine], seen[1]))
        by_edge[name] = outcome(*part, [groups[row] for row in rows])
    sizes = {name: edges.count(name) / len(edges) for name in by_edge}
    found["adapter"] = {
        kind: {what: sum(sizes[name] * by_edge[name][kind][what] for name in by_edge) for what in ("auc", "tpr")}
        for kind in ATTACKS
    }
    return found


Losses = tuple["np.ndarray", "np.ndarray"]  # of members and of others


def losses(recipe: Any, members: Any, others: Any, adapter: bytes | None) -> Losses:
    """The denoising losses of both under the base with `adapter` (None: the bare base, the reference)."""
    from fedkd.cli.benchmarks.materials import pipeline, wearing
    from fedkd.evaluation.membership import denoising_losses

    with wearing(pipeline(recipe), adapter) as pipe:
        known = [
            denoising_losses(pipe, part, resolution=recipe.model.resolution, seed=recipe.run.seed)
            for part in (members, others)
        ]
    return known[0], known[1]


def outcome(reference: Losses, target: Losses, groups: list[str]) -> Facts:
    """Both attacks on one model."""
    import numpy as np

    from fedkd.evaluation.membership import against_reference, loss_threshold, success

    truth = np.repeat([True, False], [len(target[0]), len(target[1])])
    scores = {"threshold": loss_threshold(*target), "reference": against_reference(*target, *reference)}
    return {kind: asdict(success(scores[kind], truth, groups)) for kind in ATTACKS}


def held_out(recipe: Any) -> Any:
    """Pictures of the users' concepts that no user has and the base never saw."""
    from datasets import concatenate_datasets

    from fedkd.data.sources import load_images

    parts = [load_images(replace(recipe, data=replace(recipe.data, split=split))) for split in HELD_OUT]
    return concatenate_datasets(parts).select_columns(["image", "caption"])


def by_strength(names: list[str], row: Callable[[str, Any], list[float]]) -> list[Table]:
    """Utility beside the stronger attack, over the strength of image to image; nothing when it was not measured."""
    if not names:
        return []
    lines: dict[str, Callable[[Facts], float]] = {
        "taught concepts drawn right": lambda facts: number(facts, "taught"),
        "AUC on the student": lambda facts: best(facts, "student", "auc"),
        "AUC on the adapter": lambda facts: best(facts, "adapter", "auc"),
    }
    columns = {name: f"{STRENGTHS[name]:g}" for name in names}
    rows = {words: {columns[name]: row(name, value) for name in names} for words, value in lines.items()}
    title = "Utility and attack by strength"
    return [
        Table(title, list(columns.values()), rows, plain=True, digits=3, chart="lines", across="synthesis.strength")
    ]


def best(facts: Facts, model: str, what: str) -> float:
    """The stronger attack's figure."""
    return max(number(facts, "attacks", model, kind, what) for kind in ATTACKS)


def result(request: Request, names: list[str], seeds: list[int], found: dict[Any, Facts]) -> Result:
    """The tables and the promises."""

    def row(name: str, value: Any) -> list[float]:
        return [value(found[name, seed]) for seed in seeds]

    utility: dict[str, dict[str, list[float]]] = {}
    for name in names:
        utility[name] = {words: row(name, lambda facts, key=key: number(facts, key)) for key, words in UTILITY.items()}
    percent = [UTILITY[key] for key in ("taught", "known", "refused_share")]
    columns = list(UTILITY.values())
    plain = [words for words in columns if words not in percent]
    title = "Students and sets (percent), and distance of a picture to the nearest private one"
    tables = [Table(title, columns, utility, plain_columns=plain, digits=2)]
    for what, title in (("auc", "AUC of attacks"), ("tpr", "Members found at 1% false alarms")):
        rows = {
            name: {
                f"{model}, {kind}": row(name, lambda facts, at=(model, kind): number(facts, "attacks", *at, what))  # noqa: B023
                for model, kind in ATTACKED
            }
            for name in names
        }
        tables.append(Table(title, list(rows[names[0]]), rows, plain=True, digits=3))
    tables += by_strength([name for name in names if name in STRENGTHS], row)
    ours = [found[DEFAULT, seed] for seed in seeds]
    worst = [found[BARE, seed] for seed in seeds]
    auc = mean(best(facts, "student", "auc") for facts in ours)
    gap = mean(
        best(bad, "adapter", "auc") - best(good, "adapter", "auc") for good, bad in zip(ours, worst, strict=True)
    )
    shows = [
        at_most("default: AUC of the stronger attack on the student", auc, STUDENT_AUC),
        at_least("AUC on an adapter of private pictures, above the default's adapter", gap, 0.0),
        at_most("settings that could not be measured", sum("failed" in facts for facts in found.values()), 0),
    ]
    notes = [f"{key[0]}, seed {key[1]}: {facts['failed']}" for key, facts in found.items() if "failed" in facts]
    notes.append("base: the attack on the model before any training; away from 0.5 is what pictures differ by anyway")
    notes.append("groups: an attack is judged within each concept, so that a concept's being taught gives nothing away")
    return Result(request.name, request.command, seeds, tables, shows, notes)
