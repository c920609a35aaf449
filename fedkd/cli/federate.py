"""`fedkd federate`: the loop over a running SuperLink, whose edges and users are on machines of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedkd.cli.carry_out import LOOPBACK

if TYPE_CHECKING:
    from fedkd.recipe import Recipe
    from server.processes import FlowerRun

DEFAULT = f"{LOOPBACK}:8000"  # where flower-superlink listens
TOKEN = "FEDKD_TOKEN"
OTHER_ADDRESS = 64  # X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL


def federate(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file (see: fedkd recipes ls)")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[a.b=c]...", help="Overrides, e.g. federation.users=12", show_default=False),
    ] = None,
    superlink: Annotated[
        str, typer.Option("--superlink", metavar="HOST:PORT", help="The SuperLink, which runs on this machine")
    ] = DEFAULT,
    root_certificates: Annotated[
        str, typer.Option(metavar="FILE", help="Certificate of the authority that signed the SuperLink's")
    ] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="The SuperLink has no TLS")] = False,
    registry_host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where nodes reach this machine to pull checkpoints; they show FEDKD_TOKEN of their environment, "
            "which has to be this command's. Not needed when the recipe has federation.registry_url",
        ),
    ] = "",
    resume: Annotated[
        str, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run: its folder or name")
    ] = "",
    local: Annotated[
        bool,
        typer.Option(
            "--local", help="Start SuperLink, edges and users here, as processes with TLS and keys of their own"
        ),
    ] = False,
    netns: Annotated[
        bool, typer.Option("--netns", help="With --local: each in a network namespace of its own (Linux, root)")
    ] = False,
) -> None:
    """Run a federation over a SuperLink and the SuperNodes that are connected to it.

    Start it on the SuperLink's machine: the cloud's part of the work runs there, in RUN. How to start SuperLink and
    SuperNodes, with certificates and keys: docs/deploy.md. What is done is saved; after a crash of the SuperLink, of
    this command or of the machine go on with --resume.

    Example: fedkd federate quickstart --superlink 127.0.0.1:8000 --root-certificates ca.crt --registry-host 10.0.0.1

    Example: fedkd federate --resume runs/quickstart --root-certificates ca.crt --registry-host 10.0.0.1

    Example: fedkd federate quickstart federation.edges=3 federation.users=6 --local --netns
    """
    from fedkd.cli.run_folder import begun, guard_with, resumed, shown

    hint: list[str] = ["run the same command again to start over"]
    with guard_with(hint):
        check(local, netns, superlink, root_certificates, insecure)
        chosen, run = resumed(resume, recipe, overrides or []) if resume else begun(recipe, overrides or [], "federate")
        hint[0] = f"what is done is saved; go on with: fedkd federate --resume {shown(run)}"
        from fedkd.cli.carry_out import carry_out

        token = os.environ.get(TOKEN, "")
        place: contextlib.AbstractContextManager[tuple[Callable[..., None], str, str]]
        place = (
            deployed(chosen, run, netns) if local else there(chosen, superlink, root_certificates, registry_host, token)
        )
        with place as (prepare, host, token):
            start = partial(submitted, chosen, run, prepare)
            code = carry_out(chosen, run, start, verb="federate", resume=bool(resume), host=host, token=token)
    raise SystemExit(code)


def check(local: bool, netns: bool, superlink: str, root_certificates: str, insecure: bool) -> None:
    """ValueError for options that do not go together, or a certificate that is not there."""
    if local:
        if superlink != DEFAULT or root_certificates or insecure:
            raise ValueError(
                "--local starts a SuperLink of its own; leave --superlink, --root-certificates, --insecure out"
            )
        return
    if netns:
        raise ValueError("--netns is for --local; give both or neither")
    host, _, port = superlink.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--superlink {superlink} is not HOST:PORT; give 127.0.0.1:8000, say")
    if bool(root_certificates) == insecure:
        raise ValueError("give --root-certificates FILE for a SuperLink with TLS, or --insecure for one without")
    if root_certificates and not Path(root_certificates).expanduser().is_file():
        raise ValueError(f"--root-certificates {root_certificates}: no such file; give the authority's certificate")
    ca = Path(root_certificates).expanduser() if root_certificates else None
    check_answer(superlink, host, int(port), ca)
    if ca and host != LOOPBACK:
        check_own_processes(int(port), ca)


def check_answer(superlink: str, host: str, port: int, ca: Path | None) -> None:
    """ValueError unless a SuperLink answers there, with a certificate of the authority in the file `ca`, if any."""
    try:
        with socket.create_connection((host, port), timeout=5.0) as connection:
            if ca:
                shake_hands(connection, host, ca, superlink)
    except OSError as error:
        raise ValueError(
            f"no SuperLink answers at {superlink} ({error}); start flower-superlink, or give --superlink HOST:PORT"
        ) from error


def check_own_processes(port: int, ca: Path) -> None:
    """ValueError when what listens at 127.0.0.1 has no certificate for it, as a SuperLink's own processes want there.

    They would end with that error in the SuperLink's log alone, and a run would wait for them for ever.
    """
    try:
        with socket.create_connection((LOOPBACK, port), timeout=5.0) as connection:
            ssl.create_default_context(cafile=str(ca)).wrap_socket(connection, server_hostname=LOOPBACK).close()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code != OTHER_ADDRESS:
            return  # of another authority: this is not the SuperLink
        raise ValueError(
            f"the SuperLink's certificate is not for {LOOPBACK} ({error.verify_message}), where its own processes "
            f"call it; make one for both (subjectAltName=…,IP:{LOOPBACK})"
        ) from error
    except OSError:
        return  # it listens at another address, and its own processes call it there


def shake_hands(connection: socket.socket, host: str, ca: Path, superlink: str) -> None:
    """ValueError unless what answers shows a certificate for `host` that the authority in the file `ca` signed."""
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except ssl.SSLError as error:
        raise ValueError(f"--root-certificates {ca}: this is no certificate in PEM; give the authority's") from error
    try:
        context.wrap_socket(connection, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        raise ValueError(
            f"--root-certificates {ca} does not fit the SuperLink at {superlink} ({error.verify_message}); give the "
            "certificate of the authority that signed the SuperLink's"
        ) from error
    except ssl.SSLError as error:
        raise ValueError(
            f"what answers at {superlink} speaks no TLS ({error.reason}); give --insecure if that is meant"
        ) from error


@contextlib.contextmanager
def there(
    recipe: Recipe, superlink: str, root_certificates: str, registry_host: str, token: str
) -> Iterator[tuple[Callable[..., None], str, str]]:
    """A SuperLink that runs already: (how `flwr` is told of it, where the registry is served, its token)."""
    from server.deployment import connect

    if not recipe.federation.registry_url:
        if not registry_host:
            raise ValueError(
                "nodes need a place to pull checkpoints from; give --registry-host with this machine's address, "
                "or federation.registry_url=https://… of a registry"
            )
        if not token:
            raise ValueError(f"set {TOKEN} to one secret here and in the environment of all SuperNodes")
    ca = Path(root_certificates).expanduser().resolve() if root_certificates else None
    yield partial(connect, address=superlink, ca=ca), registry_host or "127.0.0.1", token


@contextlib.contextmanager
def deployed(recipe: Recipe, run: Path, netns: bool) -> Iterator[tuple[Callable[..., None], str, str]]:
    """A deployment on this machine, below RUN/deployment, for as long as the block."""
    import secrets

    from fedkd.cli.console import console
    from server.deployment import connect, deployment

    token = secrets.token_urlsafe(32)
    with contextlib.ExitStack() as stack:
        with console.status("starting SuperLink and SuperNodes"):
            made = stack.enter_context(deployment(recipe, run / "deployment", netns=netns, token=token))
        yield partial(connect, address=made.address, ca=made.ca), made.this_host, token


@contextlib.contextmanager
def submitted(recipe: Recipe, run: Path, prepare: Callable[..., None], url: str, token: str) -> Iterator[FlowerRun]:
    """Submit RUN/recipe.yaml; a run that is still going on at the end of the block is stopped."""
    import shutil
    import tempfile

    from server.deployment import CONNECTION
    from server.processes import environment, submit, unhurried

    home = Path(tempfile.mkdtemp(prefix="fedkd-"))
    try:
        env = environment(home, recipe, token)
        prepare(env)
        flower = submit(home, env, run, registry_url=url, connection=CONNECTION)
        try:
            yield flower
        finally:
            with unhurried():
                if flower.running():
                    flower.stop()
                flower.process.wait(30)
    finally:
        shutil.rmtree(home, ignore_errors=True)
