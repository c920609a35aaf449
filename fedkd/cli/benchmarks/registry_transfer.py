"""What publishing and pulling cost: bytes of a second version, throughput against curl, many pulls at once."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.cli.benchmarks.registry_ledger import make_model
from fedkd.cli.benchmarks.registry_student import NAME

if TYPE_CHECKING:
    from fedkd.checkpoints.registry import Registry

START_S = 60.0
PULLS, PROCESSES = 32, 4
SERVER = """
import json, sys, uvicorn
from fedkd.serving.registry_http import create_registry_app
settings = json.loads(sys.stdin.readline())
app = create_registry_app(settings["root"], settings["token"])
uvicorn.run(app, host="127.0.0.1", port=settings["port"], log_level="error")
"""


@contextlib.contextmanager
def served(root: Path, token: str) -> Iterator[str]:
    """The registry at `root` over HTTP from a process of its own; yields the URL."""
    import httpx

    from fedkd.checkpoints.manifest import CheckpointError
    from fedkd.serving.loopback import free_port

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, env=environment)
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"root": str(root), "token": token, "port": port}).encode() + b"\n")
        process.stdin.close()
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/healthz", trust_env=False).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise CheckpointError(f"the registry's server did not answer at {url} within {START_S:g} s")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def bytes_moved(
    registry: Registry, folder: Path, token: str, *, bucket: bool = True
) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """{place: (bytes moved for `registry`'s v0, then for v1)}, and what could not be tried."""
    from fedkd.checkpoints.registry import Registry
    from fedkd.checkpoints.transfer import pull, push

    found, notes = dict[str, tuple[int, int]](), list[str]()

    def pushed(url: str) -> tuple[int, int]:
        first, second = (push(registry, f"{NAME}:{version}", url).bytes_moved for version in ("v0", "v1"))
        return first, second

    found["file"] = pushed(str(folder / "elsewhere"))
    with object_store() if bucket else contextlib.nullcontext("") as url:
        if url:
            found["s3"] = pushed(url)
        elif bucket:
            notes.append("s3 was left out: it wants `pip install 'moto[s3]' flask flask-cors s3fs`")
    with served(registry.root, token) as url:
        mirror = Registry(folder / "over-http")
        first, second = (pull(f"{NAME}:{version}", url, mirror, token=token).bytes_moved for version in ("v0", "v1"))
        found["http"] = (first, second)
    for used in (mirror.root, folder / "elsewhere"):
        shutil.rmtree(used)
    return found, notes


@contextlib.contextmanager
def object_store() -> Iterator[str]:
    """An S3 of moto's on loopback; yields the URL of a bucket, empty when the libraries are not there."""
    try:
        import boto3
        import s3fs
        from moto.server import ThreadedMotoServer
    except ImportError:
        yield ""
        return
    settings = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    s3fs.S3FileSystem.clear_instance_cache()  # an earlier one would go to an earlier server
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = {name: os.environ.get(name) for name in (*settings, "AWS_ENDPOINT_URL")}
    os.environ |= {**settings, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    try:
        bucket = uuid.uuid4().hex  # moto keeps what it holds as long as the process lives
        boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(Bucket=bucket)
        yield f"s3://{bucket}/registry"
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def throughput(folder: Path, token: str, size_bytes: int, repeats: int) -> dict[str, list[float]]:
    """{who: MB/s of each repeat} for `fedkd pull` and curl of the same bytes from the same server, in turns.

    A first turn of each is not counted.
    """
    from fedkd.checkpoints.registry import Registry
    from fedkd.checkpoints.transfer import pull

    parts = {part: size_bytes // 4 for part in ("unet", "transformer", "vae", "text_encoder")}
    make_model(folder / "large", np.random.default_rng(0), parts)
    registry = Registry(folder / "large-cloud")
    manifest = registry.publish(folder / "large", name=NAME)
    shutil.rmtree(folder / "large")
    found: dict[str, list[float]] = {"fedkd pull": [], "curl": [], "curl --parallel": []}
    with served(registry.root, token) as url:
        blobs = [f"{url}/v1/registry/blobs/sha256/{sha256[:2]}/{sha256}" for sha256 in manifest.blobs]
        for turn in range(repeats + 1):
            for who, taken in found.items():
                target = folder / "pulled"
                started = time.monotonic()
                if who == "fedkd pull":
                    pull(NAME, url, Registry(target), token=token)
                else:
                    curl(blobs, target, token, parallel=who != "curl")
                if turn:
                    taken.append(manifest.size_bytes / 1e6 / (time.monotonic() - started))
                shutil.rmtree(target)
    shutil.rmtree(registry.root)
    return found


def curl(urls: list[str], folder: Path, token: str, *, parallel: bool) -> None:
    """Fetch the URLs into a folder with one curl command."""
    from fedkd.checkpoints.manifest import CheckpointError

    folder.mkdir()
    options = ["--parallel"] if parallel else []
    command = ["curl", "--silent", "--show-error", "--fail", "--remote-name-all", *options, "--config", "-", *urls]
    header = f'header = "Authorization: Bearer {token}"\n'
    done = subprocess.run(command, cwd=folder, input=header, text=True, capture_output=True, check=False)
    if done.returncode:
        raise CheckpointError(f"curl failed: {done.stderr.strip()}")


def share_of_curl(found: dict[str, list[float]], rival: str = "curl") -> float:
    """Median throughput of `fedkd pull` against curl's."""
    return statistics.median(found["fedkd pull"]) / statistics.median(found[rival])


def at_once(folder: Path, token: str, context: Any) -> tuple[float, int]:
    """32 pulls of one model into one edge's cache, from 4 processes: (transfers of the model, pulls that succeeded)."""
    from fedkd.checkpoints.registry import Registry

    make_model(folder / "wanted", np.random.default_rng(1), {"unet": 4_000_000, "vae": 1_000_000})
    registry = Registry(folder / "wanted-cloud")
    manifest = registry.publish(folder / "wanted", name=NAME)
    with served(registry.root, token) as url:
        ours, theirs = context.Pipe()
        crowd = [
            context.Process(target=pull_often, args=(url, token, folder / "edge-of-many", PULLS // PROCESSES, theirs))
            for _ in range(PROCESSES)
        ]
        for process in crowd:
            process.start()
        answers = [ours.recv() for _ in crowd]
        for process in crowd:
            process.join()
    moved = sum(bytes_moved for bytes_moved, _ in answers)
    return moved / sum(manifest.blobs.values()), sum(succeeded for _, succeeded in answers)


def pull_often(url: str, token: str, folder: Path, times: int, told: Connection) -> None:
    """Pull from as many threads; tells (bytes of blobs moved, pulls that gave the model)."""
    from fedkd.checkpoints.cache import CheckpointCache
    from fedkd.checkpoints.transfer import pull

    def one(_: int) -> tuple[int, int]:
        cache = CheckpointCache(folder)
        moved = pull(NAME, url, cache, token=token)
        size = sum(path.stat().st_size for path in cache.path().rglob("*.safetensors"))
        return (moved.bytes_moved if moved.blobs else 0), int(size > 0)

    with ThreadPoolExecutor(times) as pool:
        answers = list(pool.map(one, range(times)))
    told.send((sum(moved for moved, _ in answers), sum(fine for _, fine in answers)))
