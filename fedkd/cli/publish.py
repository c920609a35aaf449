"""`fedkd publish`: a checkpoint leaves for a folder, a bucket or the Hugging Face Hub; only what is missing moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedkd.checkpoints.registry import Registry

DEFAULT_REGISTRY = "checkpoints/registry"
LORA = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Source:
    """A version in a registry on this machine, and pictures of what it draws."""

    registry: Registry
    reference: str
    samples: list[Path] = field(default_factory=list)


def publish(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="NAME[:VERSION] of a registry, a run's folder, or a diffusers folder (with --name)"
        ),
    ],
    to: Annotated[
        str,
        typer.Option("--to", metavar="URL", help="A folder, file:///PATH, s3://BUCKET/PATH, or hf:OWNER/NAME"),
    ],
    name: Annotated[str, typer.Option(help="Name for a diffusers folder or a student. Default: the recipe's.")] = "",
    registry: Annotated[
        str, typer.Option(help=f"The registry on this machine. Default: the run's, or {DEFAULT_REGISTRY}.")
    ] = "",
    key: Annotated[str, typer.Option(help="Private key (PEM) to sign a version with that has no signature.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of a diffusers folder, e.g. apache-2.0.")] = "",
    base_model: Annotated[str, typer.Option(help="What a diffusers folder was made from, e.g. OWNER/NAME.")] = "",
    token: Annotated[str, typer.Option(help="Access token for hf:. Default: HF_TOKEN, or the hub's own login.")] = "",
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Blobs moved at once.")] = 4,
) -> None:
    """Publish a checkpoint: only blobs that the other side lacks are sent, then the version appears there whole.

    A Hugging Face repository gets a model card and opens with diffusers; so do versions in a folder. A LoRA student
    also leaves as pytorch_lora_weights.safetensors.

    Example: fedkd publish tiny-sd:v2 --to s3://models/registry

    Example: fedkd publish runs/quickstart --to hf:me/tiny-digits

    Example: fedkd publish path/to/pipeline --name mine --to /mnt/share/registry
    """
    from fedkd.cli.console import guard

    with guard("what was sent whole is kept; run the same command again to go on"):
        from fedkd.checkpoints.transfer import check_target, push
        from fedkd.cli.byte_bar import byte_bar, cost

        check_target(to)  # before anything is published on this machine
        facts: dict[str, Any] = {"licence": licence, "base_model": base_model}
        given = {fact: value for fact, value in facts.items() if value}
        found = find_source(source, name, registry, given | ({"sign": signer(key)} if key else {}))
        with byte_bar(f"publishing {found.reference}") as progress:
            moved = push(
                found.registry, found.reference, to, token=token, progress=progress, jobs=jobs, samples=found.samples
            )
        print(f"published {moved.reference} to {to}: {cost(moved)}")


def signer(key: str) -> Callable[[Path], object]:
    """What signs a folder with the private key in the file `key`; CheckpointError when it is none."""
    from fedkd.checkpoints.signing import key_claim, sign

    private = Path(key).expanduser()
    key_claim(private)
    return lambda folder: sign(folder, private)


def find_source(source: str, name: str, registry: str, facts: dict[str, Any]) -> Source:
    """The version that SRC means, published on this machine first where it is a folder; CheckpointError when none.

    `facts`: what a folder's version is published with; `sign` among them signs also one that is here unsigned.
    """
    from fedkd.checkpoints.manifest import CheckpointError
    from fedkd.checkpoints.registry import Registry

    folder = Path(source).expanduser()
    local = Registry(Path(registry or DEFAULT_REGISTRY).expanduser().resolve())
    if (folder / "recipe.yaml").is_file():
        found = of_run(folder.resolve(), name, registry, facts)
    elif (folder / "model_index.json").is_file():
        if not name:
            raise CheckpointError(f"'{source}' is a diffusers folder; give the name to publish it under: --name NAME")
        manifest = local.publish(folder, name=name, **facts)
        found = Source(local, manifest.reference)
    elif "/" in source or (folder.is_dir() and source not in local.names()):
        what = "holds neither model_index.json (a diffusers folder) nor recipe.yaml (a run)"
        raise CheckpointError(
            f"'{source}' {what if folder.is_dir() else 'does not exist'}; give one, or NAME[:VERSION]"
        )
    else:
        found = Source(local, local.manifest(source).reference)
    if "sign" in facts and not found.registry.signature(found.reference):
        facts["sign"](found.registry.resolve(found.reference))
    return found


def of_run(run: Path, name: str, registry: str, facts: dict[str, Any]) -> Source:
    """A run's version: the latest of its registry, or the student of its distillation job."""
    from fedkd.checkpoints.manifest import CheckpointError
    from fedkd.checkpoints.registry import Registry
    from fedkd.recipe import load_recipe, registry_dir

    recipe = load_recipe(str(run / "recipe.yaml"))
    if recipe.kind != "distillation":
        inside = run / "registry"
        place = Path(registry).expanduser().resolve() if registry else registry_dir(recipe)
        local = Registry(inside if not registry and not place.is_dir() and inside.is_dir() else place)
        manifest = local.manifest(name or recipe.model.name)
        return Source(local, manifest.reference, sorted((run / "pictures").glob("student-*.png")))
    if not (run / "checkpoint" / "model_index.json").is_file():
        raise CheckpointError(f"'{run}' has no student yet; go on with it: fedkd distill --resume {run}")
    local = Registry(Path(registry).expanduser().resolve() if registry else run / "registry")
    return student(run, local, name or recipe.model.name, facts | {"base_model": recipe.model.path} | facts)


def student(run: Path, local: Registry, name: str, facts: dict[str, Any]) -> Source:
    """The student of a distillation job as a version, its LoRA file beside it where the job wrote one."""
    import json
    import shutil
    import tempfile

    from fedkd.recipe import load_recipe, recipe_digest

    report = run / "report.json"
    told = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=run) as staged:
        folder = Path(staged) / "checkpoint"
        shutil.copytree(run / "checkpoint", folder)
        if (run / LORA).is_file():
            shutil.copyfile(run / LORA, folder / LORA)
        manifest = local.publish(
            folder,
            name=name,
            recipe_digest=recipe_digest(load_recipe(str(run / "recipe.yaml"))),
            sampling=told.get("sampling") or {},
            **facts,
        )
    sheets = [run / "samples" / Path(sheet["picture"]).name for sheet in told.get("sheets", ())]
    return Source(local, manifest.reference, [path for path in sheets if path.is_file()])
