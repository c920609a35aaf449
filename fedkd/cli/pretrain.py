"""`fedkd pretrain`: train a small base model and its classifier from nothing, or a ControlNet for one, resumably."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedkd.recipe import Recipe


def pretrain(
    recipe: Annotated[str, typer.Argument(help="A pretrain recipe's name or YAML file.")] = "tiny-sd",
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides, such as pretrain.steps=200.")] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder that gets MODEL/ and reference-classifier/, or MODEL-CONDITION/. Default: RUN/checkpoints."
        ),
    ] = None,
) -> None:
    """Train a base model from nothing, or the ControlNet by which a visual condition steers one.

    Run the same command again to go on after an interruption.

    Example: fedkd pretrain tiny-sd run.out=runs
    Example: fedkd pretrain controlnet-canny
    """
    from fedkd.cli.console import console, guard, progress_bar
    from fedkd.cli.recipes import check_kind

    with guard():
        from fedkd.recipe import load_recipe, run_dir, save_recipe

        loaded = load_recipe(recipe, overrides or [])
        check_kind(loaded, recipe, "pretrain")
        if loaded.kind == "controlnet":
            return _controlnet(loaded, to)
        from fedkd.data.captions import slots_of
        from fedkd.data.digits import DIGITS, coloured_digits
        from fedkd.data.sources import to_dataset
        from fedkd.evaluation.accuracy import evaluate
        from fedkd.evaluation.classifier import train_classifier
        from fedkd.models.pipeline import load_pipeline, save_pipeline
        from fedkd.training.pretrain import train_denoiser, train_vae
        from fedkd.training.tiny import tiny_pipeline

        run = run_dir(loaded)
        target = to or run / "checkpoints"
        save_recipe(loaded, run / "recipe.yaml")
        side, seed, size = loaded.model.resolution, loaded.run.seed, loaded.pretrain
        judged = [
            (row["image"], slots_of(loaded.prompts, str(row["caption"])) or {})
            for row in coloured_digits("judge", side, seed + 1, size.copies)
        ]
        with progress_bar("reference classifier") as progress:
            classifier = train_classifier(
                judged,  # type: ignore[arg-type]
                loaded.prompts.slots,
                resolution=side,
                steps=size.classifier_steps,
                seed=seed,
                progress=progress,
            )
        classifier.save(target / "reference-classifier")
        known = {DIGITS.index(name) for name in loaded.data.concepts}
        rows = [row for row in coloured_digits(loaded.data.split, side, seed, size.copies) if row["label"] in known]
        images, pipe = to_dataset(rows), tiny_pipeline(loaded)
        with progress_bar("VAE") as progress:
            train_vae(pipe, images, loaded, run, progress)
        with progress_bar("UNet and text encoder") as progress:
            train_denoiser(pipe, images, loaded, run, progress)
        save_pipeline(pipe, target / loaded.model.name)
        loaded.evaluation.classifier = str(target / "reference-classifier")
        with progress_bar("drawing to score it") as progress:
            scores = evaluate(load_pipeline(str(target / loaded.model.name)), loaded, seed=seed, progress=progress)
        console.print(f"prompt accuracy: known {scores['known']:.1%}, never seen {scores['taught']:.1%}")
        console.print(f"saved to {target / loaded.model.name}")


def _controlnet(recipe: Recipe, to: Path | None) -> None:
    """Train, save and score the ControlNet of `recipe`."""
    from fedkd.cli.console import console, progress_bar
    from fedkd.data.digits import DIGITS, coloured_digits
    from fedkd.data.sources import to_dataset
    from fedkd.evaluation.steering import followed
    from fedkd.models.controlnet_folder import save_controlnet
    from fedkd.models.pipeline import load_pipeline
    from fedkd.recipe import recipe_digest, run_dir, save_recipe
    from fedkd.training.controlnet import train_controlnet

    run, config, side = run_dir(recipe), recipe.controlnet, recipe.model.resolution
    save_recipe(recipe, run / "recipe.yaml")
    known = {DIGITS.index(name) for name in recipe.data.concepts}
    rows = coloured_digits(recipe.data.split, side, recipe.run.seed, config.copies)
    images = to_dataset([row for row in rows if row["label"] in known])
    pipe = load_pipeline(recipe.model.path)
    with progress_bar("ControlNet") as progress:
        net = train_controlnet(pipe, images, recipe, run, progress)
    target = (to or run / "checkpoints") / f"{recipe.model.name}-{config.condition}"
    about = {"base": recipe.model.name, "recipe_digest": recipe_digest(recipe), "seed": recipe.run.seed}
    save_controlnet(net, target, config.condition, about)
    if config.condition == "canny":
        unseen = coloured_digits("judge", side, recipe.run.seed + 1)[:32]
        steered, free = followed(pipe, net, unseen, seed=recipe.run.seed)
        console.print(f"edges as asked for (F1): steered {steered:.2f}, not steered {free:.2f}")
    console.print(f"saved to {target}")
