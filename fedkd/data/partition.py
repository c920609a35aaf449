"""Non-IID split of the private images over users, and of users over edges (flwr-datasets)."""

from __future__ import annotations

from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    Partitioner,
    PathologicalPartitioner,
)

from fedkd.data.captions import concept_of
from fedkd.data.sources import DataError, load_images
from fedkd.recipe import Recipe


def edge_of(user: int, recipe: Recipe) -> int:
    """The edge that a user belongs to: users in equal blocks over edges."""
    return user * recipe.federation.edges // recipe.federation.users


def _partitioner(recipe: Recipe, classes: int) -> Partitioner:
    users, seed, data = recipe.federation.users, recipe.run.seed, recipe.data
    if data.partition == "iid" or classes < 2:
        return IidPartitioner(num_partitions=users)
    if data.partition == "dirichlet":
        return DirichletPartitioner(
            num_partitions=users,
            partition_by="concept",
            alpha=data.dirichlet_alpha,
            min_partition_size=1,
            seed=seed,
        )
    return PathologicalPartitioner(
        num_partitions=users,
        partition_by="concept",
        num_classes_per_partition=min(data.classes_per_user, classes),
        class_assignment_mode="deterministic",
        seed=seed,
    )


def _concepts(images: Dataset, recipe: Recipe) -> list[str] | None:
    """What each picture shows: its label, else the concept that its caption names; None when any is unknown."""
    labels = list(images["label"])
    if min(labels) >= 0:
        return [str(label) for label in labels]
    named = [concept_of(recipe.prompts, text) for text in images["caption"]]
    return None if None in named else [str(value) for value in named]


def partition(images: Dataset, recipe: Recipe) -> list[Dataset]:
    """Disjoint shares of `images`, one a user, seeded by `run.seed`; every picture is in one of them.

    Splits by concept where every picture's is known, else at random; so do unlabelled pictures (one's own
    folder) of more concepts than the users can hold. Raises DataError when a user would get nothing or
    a labelled concept would go to nobody.
    """
    users, held = recipe.federation.users, recipe.data.classes_per_user
    if len(images) < users:
        raise DataError(f"{len(images)} images are too few for federation.users={users}; give each user at least one")
    key = _concepts(images, recipe)
    classes = len(set(key)) if key else 0
    covered = users + held - 1  # user i holds the concepts i to i + held - 1
    if recipe.data.partition == "pathological" and classes > covered:
        if min(images["label"]) >= 0:
            raise DataError(
                f"data.classes_per_user={held} for federation.users={users} covers {covered} of {classes} "
                f"concepts; give at least {classes - users + 1}"
            )
        key, classes = None, 0
    key = key or [""] * len(images)
    keyed = images.add_column("concept", key).shuffle(seed=recipe.run.seed)
    partitioner = _partitioner(recipe, classes)
    partitioner.dataset = keyed
    try:
        shares = [partitioner.load_partition(user).remove_columns("concept") for user in range(users)]
    except ValueError as error:
        raise DataError(f"data.partition={recipe.data.partition} cannot split these images: {error}") from error
    empty = [user for user, share in enumerate(shares) if not len(share)]
    if empty:
        raise DataError(f"data.partition={recipe.data.partition} leaves user {empty[0]} without images; use iid")
    return shares


_kept: list[tuple[Recipe, list[Dataset]]] = []


def user_images(recipe: Recipe, user: int) -> Dataset:
    """The private images of one user in a simulation; a process that answers for many users splits them once."""
    if not _kept or _kept[0][0] != recipe:
        _kept[:] = [(recipe, partition(load_images(recipe), recipe))]
    return _kept[0][1][user]
