"""`fedkd checkpoints`: look into a registry, keep its versions, and go back to an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedkd.cli.checkpoint_text import difference, facts_of, megabytes, step_line, table
from fedkd.cli.console import fail, guard

if TYPE_CHECKING:
    from fedkd.checkpoints.registry import Registry

DEFAULT = Path("checkpoints/registry")

checkpoints = typer.Typer(
    help="Look into a registry of checkpoints, keep versions, and go back to an earlier one.\n\n"
    "A registry is a plain folder; a run's own is RUN/registry.\n\n"
    "Example: fedkd checkpoints ls --registry runs/quickstart/registry",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Where = Annotated[Path | None, typer.Option("--registry", help=f"The registry's folder [default: {DEFAULT}].")]
Recipe = Annotated[str, typer.Option("--recipe", help="Use the registry of this recipe instead.")]
Reference = Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="VERSION: v3, latest (default), candidate.")]


def find(where: Path | None, recipe: str = "") -> Registry:
    """The registry that the options name; CheckpointError when there is none."""
    from fedkd.checkpoints.manifest import CheckpointError
    from fedkd.checkpoints.registry import Registry

    if where is not None and recipe:
        raise CheckpointError(f"--registry {where} and --recipe {recipe} both name a registry; give one")
    if recipe:
        from fedkd.recipe import load_recipe, registry_dir

        where = registry_dir(load_recipe(recipe))
    root = where or DEFAULT
    if not root.is_dir():
        raise CheckpointError(f"no registry at '{root}'; give one with --registry, e.g. runs/quickstart/registry")
    return Registry(root)


@checkpoints.command("ls")
def list_versions(
    name: Annotated[str, typer.Argument(help="Only this name [default: all]")] = "",
    registry: Where = None,
    recipe: Recipe = "",
) -> None:
    """List versions: size, bytes that the version before lacks, round, parents, and what points at them.

    Example: fedkd checkpoints ls
    """
    with guard():
        store = find(registry, recipe)
        if name and not store.versions(name):
            store.folder(name)  # says what there is instead
        for line in table(store, [name] if name else store.names()):
            print(line)


@checkpoints.command("show")
def show(
    reference: Reference,
    registry: Where = None,
    recipe: Recipe = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as it is.")] = False,
) -> None:
    """Show what a version is: where it comes from, what it scored, its files.

    Example: fedkd checkpoints show tiny-sd:latest
    """
    with guard():
        store = find(registry, recipe)
        manifest, folder = store.manifest(reference), store.folder(reference)
        if as_json:
            print(manifest.to_json())
            return
        for line in facts_of(store, manifest, folder):
            print(line)


@checkpoints.command("lineage")
def show_lineage(reference: Reference, registry: Where = None, recipe: Recipe = "") -> None:
    """Show what a version descends from, back to the root; versions that gc removed are told too.

    Example: fedkd checkpoints lineage tiny-sd
    """
    from fedkd.checkpoints.lineage import lineage

    with guard():
        store = find(registry, recipe)
        for step in lineage(store, reference):
            print(step_line(step))


@checkpoints.command("diff")
def show_difference(
    before: Annotated[str, typer.Argument(metavar="A", help="NAME[:VERSION]")],
    after: Annotated[str, typer.Argument(metavar="B", help="NAME[:VERSION]")],
    registry: Where = None,
    recipe: Recipe = "",
) -> None:
    """Show the files in which two versions differ, and the bytes that one who holds A fetches for B.

    Example: fedkd checkpoints diff tiny-sd:v0 tiny-sd:latest
    """
    from fedkd.checkpoints.lineage import diff

    with guard():
        for line in difference(diff(find(registry, recipe), before, after)):
            print(line)


@checkpoints.command("verify")
def verify(
    reference: Annotated[str, typer.Argument(metavar="[NAME[:VERSION]]", help="[default: all versions]")] = "",
    registry: Where = None,
    recipe: Recipe = "",
    key: Annotated[
        list[Path] | None, typer.Option("--key", help="Also demand a signature by this public key; may be repeated.")
    ] = None,
) -> None:
    """Read every byte and compare it with the manifests; exit status 2 when a version is damaged.

    Example: fedkd checkpoints verify tiny-sd:v3 --key keys/public.pem
    """
    from fedkd.checkpoints.manifest import CheckpointError
    from fedkd.checkpoints.registry import ALIASES

    with guard():
        store = find(registry, recipe)
        if key:
            from fedkd.checkpoints.signing import TrustPolicy, check_policy
            from fedkd.checkpoints.signing import verify as verify_signature

            policy = TrustPolicy(require_signature=True, public_keys=key)
            check_policy(policy)
        names = [reference] if reference and ":" not in reference else store.names()
        wanted = [reference] if ":" in reference else [f"{name}:{v}" for name in names for v in store.versions(name)]
        if reference and not wanted:
            store.folder(reference)
        damaged = []
        for each in wanted:
            try:
                folder = store.resolve(each)
                if key:
                    verify_signature(folder, policy)
                print(f"{each}  sound{', signature trusted' if key else ''}")
            except CheckpointError as error:
                if len(wanted) == 1:
                    raise
                print(f"{each}  {error}")
                damaged.append(each)
        if damaged:
            fail(f"{len(damaged)} of {len(wanted)} versions failed: {', '.join(damaged)}; publish or fetch them again")
        for name in () if reference else names:
            for alias in ALIASES:
                version = store.alias(name, alias)
                if version is not None and version not in store.versions(name):
                    fix = f"run: fedkd checkpoints rollback {name} vN" if alias == "latest" else "publish one again"
                    fail(f"{alias} of '{name}' is {version}, which is not there; {fix}")


@checkpoints.command("pin")
def pin_version(reference: Reference, registry: Where = None, recipe: Recipe = "") -> None:
    """Keep a version from gc.

    Example: fedkd checkpoints pin tiny-sd:v3
    """
    with guard():
        from fedkd.checkpoints.names import pin

        print(f"{pin(find(registry, recipe), reference)} is pinned: gc keeps it")


@checkpoints.command("unpin")
def unpin_version(reference: Reference, registry: Where = None, recipe: Recipe = "") -> None:
    """Undo `pin`.

    Example: fedkd checkpoints unpin tiny-sd:v3
    """
    with guard():
        from fedkd.checkpoints.names import unpin

        print(f"{unpin(find(registry, recipe), reference)} is no longer pinned")


@checkpoints.command("gc")
def gc(
    registry: Where = None,
    recipe: Recipe = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove versions and blobs that no name, pin or lineage root needs.

    What stays: latest, candidate, the version before latest (for rollback), pinned versions and lineage roots.

    Example: fedkd checkpoints gc --dry-run
    """
    from fedkd.checkpoints.collection import collect

    with guard("run the same command again: the registry is whole"):
        done = collect(find(registry, recipe), dry_run=dry_run)
        for each, why in done.kept.items():
            print(f"keep    {each}  {why}")
        for each in done.versions:
            print(f"{'would remove' if dry_run else 'removed'} {each}")
        print(
            f"{'would free' if dry_run else 'freed'} {megabytes(done.freed_bytes)}: {len(done.versions)} versions, "
            f"{done.blobs} blobs, {done.leftovers} leftovers of killed writers"
        )


@checkpoints.command("rollback")
def roll_back(
    name: Annotated[str, typer.Argument(help="The name whose `latest` moves.")],
    version: Annotated[str, typer.Argument(help="The version to go to [default: the parent of latest]")] = "",
    registry: Where = None,
    recipe: Recipe = "",
) -> None:
    """Point `latest` at an earlier version, once that is verified; nothing is deleted.

    Example: fedkd checkpoints rollback tiny-sd v2
    """
    with guard():
        from fedkd.checkpoints.names import rollback

        before, after = rollback(find(registry, recipe), name, version)
        print(f"{name}: latest was {before}, is now {after}")
