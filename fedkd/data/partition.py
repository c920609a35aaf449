"""Non-IID split of the private images over users, and of users over edges (flwr-datasets)."""

from __future__ import annotations

from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    Partitioner,
    PathologicalPartitioner,
)

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


def partition(images: Dataset, recipe: Recipe) -> list[Dataset]:
    """Disjoint shares of `images`, one a user, seeded by `run.seed`.

    Splits by `label` where it is known, else by caption. Raises DataError when a user would get nothing.
    """
    labels = images["label"]
    key = list(labels) if min(labels) >= 0 else list(images["caption"])
    classes = len(set(key))
    users = recipe.federation.users
    if len(images) < users:
        raise DataError(
            f"{len(images)} images are too few for federation.users={users}; give each user at least one"
        )
    keyed = images.add_column("concept", [str(value) for value in key]).shuffle(seed=recipe.run.seed)
    partitioner = _partitioner(recipe, classes)
    partitioner.dataset = keyed
    try:
        shares = [partitioner.load_partition(user).remove_columns("concept") for user in range(users)]
    except ValueError as error:
        raise DataError(
            f"data.partition={recipe.data.partition} cannot split these images: {error}"
        ) from error
    empty = [user for user, share in enumerate(shares) if not len(share)]
    if empty:
        raise DataError(
            f"data.partition={recipe.data.partition} leaves user {empty[0]} without images; use iid"
        )
    return shares


def user_images(recipe: Recipe, user: int) -> Dataset:
    """The private images of one user in a simulation."""
    return partition(load_images(recipe), recipe)[user]
