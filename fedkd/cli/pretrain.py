"""`fedkd pretrain`: train a small base model and its reference classifier from nothing, resumably."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    recipe: Annotated[str, typer.Argument(help="A pretrain recipe's name or YAML file.")] = "tiny-sd",
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides, such as pretrain.steps=200.")] = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Folder that gets MODEL/ and reference-classifier/. Default: RUN/checkpoints."),
    ] = None,
) -> None:
    """Train a base model from nothing; run the same command again to go on after an interruption.

    Example: fedkd pretrain tiny-sd run.out=runs
    """
    from fedkd.cli.console import console, guard, progress_bar
    from fedkd.cli.recipes import check_kind

    with guard():
        from fedkd.recipe import load_recipe, run_dir, save_recipe

        loaded = load_recipe(recipe, overrides or [])
        check_kind(loaded, recipe, "pretrain")
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
