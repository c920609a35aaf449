"""`fedkd pull`: a checkpoint comes from a folder, a bucket, a web server or the hub; only what is missing moves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_REGISTRY = "checkpoints/registry"


def pull(
    context: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="What to fetch; latest by default.")],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="URL",
            help="A folder, file:///PATH, s3://BUCKET/PATH, http(s)://HOST[:PORT], or hf:OWNER/NAME",
        ),
    ],
    registry: Annotated[str, typer.Option(help="The registry on this machine to fetch into.")] = DEFAULT_REGISTRY,
    trusted_key: Annotated[
        list[str] | None, typer.Option(help="Public key (PEM) whose signature is good; may be given again.")
    ] = None,
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Refuse a version without a good signature.")
    ] = False,
    token: Annotated[
        str,
        typer.Option(
            envvar="FEDKD_TOKEN",
            help="Bearer token for http(s). For hf: only when given here, else HF_TOKEN or the hub's own login.",
        ),
    ] = "",
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Blobs fetched at once.")] = 4,
) -> None:
    """Fetch a checkpoint into a registry on this machine and print its folder, which opens with diffusers.

    Only blobs that are not here are fetched, and verified before they get their name. A broken transfer is gone on
    with by the same command.

    Example: fedkd pull tiny-sd --from http://cloud.example:8766

    Example: fedkd pull tiny-sd:v2 --from s3://models/registry --trusted-key signing.pub --require-signature
    """
    from fedkd.cli.console import console, guard

    with guard("what came is kept; run the same command again to go on"):
        from click.core import ParameterSource

        from fedkd.checkpoints.registry import Registry
        from fedkd.checkpoints.signing import TrustPolicy, check_policy
        from fedkd.checkpoints.transfer import pull as fetch
        from fedkd.cli.byte_bar import byte_bar, cost

        if source.startswith("hf:") and context.get_parameter_source("token") == ParameterSource.ENVIRONMENT:
            token = ""  # a registry's token is none of the hub's business
        target = Registry(Path(registry).expanduser().resolve())
        policy = TrustPolicy(require_signature, [Path(key).expanduser() for key in trusted_key or []])
        check_policy(policy)
        with byte_bar(f"pulling {reference}") as progress:
            moved = fetch(reference, source, target, token=token, progress=progress, jobs=jobs, policy=policy)
        console.print(f"pulled {moved.reference} from {source}: {cost(moved)}", markup=False, soft_wrap=True)
        print(target.folder(moved.reference))
