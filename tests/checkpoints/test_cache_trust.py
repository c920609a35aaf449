"""A cache with a trust policy: what is not signed by a trusted key is refused, and the old version served on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedkd.checkpoints.cache import CheckpointCache
from fedkd.checkpoints.manifest import MANIFEST_NAME, SIGNATURE_NAME, CheckpointError, FileEntry, Manifest
from fedkd.checkpoints.signing import TrustPolicy, generate_keys
from tests.checkpoints.published import Source


@pytest.fixture()
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source")


@pytest.fixture()
def cache(tmp_path: Path) -> CheckpointCache:
    return CheckpointCache(tmp_path / "cache")


@pytest.fixture()
def signed(tmp_path: Path) -> tuple[Source, CheckpointCache, Manifest]:
    """A source with a key, a cache that takes its signatures alone, and the version that it serves."""
    private, public = generate_keys(tmp_path / "keys")
    source = Source(tmp_path / "source", private)
    cache = CheckpointCache(tmp_path / "cache", policy=TrustPolicy(True, [public]))
    one = source.publish("one")
    source.activate(cache, one)
    return source, cache, one


def refused(cache: CheckpointCache, served: Manifest, act: Callable[[], object], why: str) -> None:
    """`act` is refused, and what was served is served on, also by another process's eyes."""
    with pytest.raises(CheckpointError, match=why):
        act()
    assert cache.path().name == served.digest
    assert CheckpointCache(cache.root, policy=cache.policy).sound_digest() == served.digest
    assert cache.shelf.held() == [served.digest] and not list((cache.root / "flights").glob("*/build"))


def test_a_version_signed_by_another_key_is_refused(
    signed: tuple[Source, CheckpointCache, Manifest], tmp_path: Path
) -> None:
    _, cache, one = signed
    other = Source(tmp_path / "evil", generate_keys(tmp_path / "other")[0])
    two = other.publish("two")
    refused(cache, one, lambda: other.activate(cache, two), "was signed by key .* not trusted")


def test_an_unsigned_version_is_refused(signed: tuple[Source, CheckpointCache, Manifest], tmp_path: Path) -> None:
    _, cache, one = signed
    other = Source(tmp_path / "evil")
    two = other.publish("two")
    refused(cache, one, lambda: other.activate(cache, two), "is not signed")


def test_one_flipped_bit_in_any_blob_is_refused(signed: tuple[Source, CheckpointCache, Manifest]) -> None:
    source, cache, one = signed
    two = source.publish("two", vae="new", size_bytes=2001)
    for target in two.files:
        for place in (0, target.size // 2, target.size - 1):

            def flip(entry: FileEntry, part: Path, target: FileEntry = target, place: int = place) -> None:
                source.fetch(entry, part)
                if entry == target:
                    data = bytearray(part.read_bytes())
                    data[place] ^= 1
                    part.write_bytes(data)

            def act(fetch: Callable[[FileEntry, Path], None] = flip) -> None:
                shutil.rmtree(cache.shelf.flight(two.digest), ignore_errors=True)  # nothing from the attempt before
                cache.activate(two, text=source.text(two), signature=source.registry.signature("m"), fetch=fetch)

            shared = any(entry.sha256 == target.sha256 for entry in one.files)
            if not shared:
                refused(cache, one, act, "damaged on its way")
    source.activate(cache, two)


def test_a_changed_manifest_or_an_old_signature_is_refused(signed: tuple[Source, CheckpointCache, Manifest]) -> None:
    source, cache, one = signed
    before = source.registry.signature("m:v0")
    two = source.publish("two")
    text, signature = source.text(two), source.registry.signature(two.reference)
    changed = text.replace('"round": 0', '"round": 7')
    fake = Manifest.from_json(changed)
    act = lambda: cache.activate(fake, text=changed, signature=signature, fetch=source.fetch)  # noqa: E731
    refused(cache, one, act, "does not hold")
    act = lambda: cache.activate(two, text=text, signature=before, fetch=source.fetch)  # noqa: E731
    refused(cache, one, act, "does not hold")


def renamed_pickle(tmp_path: Path) -> bytes:
    import pickle

    return pickle.dumps({"w": np.zeros(4)})


def test_a_pickle_renamed_safetensors_is_refused_even_when_signed(
    signed: tuple[Source, CheckpointCache, Manifest], tmp_path: Path
) -> None:
    from dataclasses import replace
    from hashlib import sha256

    from fedkd.checkpoints.signing import sign

    source, cache, one = signed
    assert source.key is not None
    data = renamed_pickle(tmp_path)
    entry = FileEntry("unet/w.safetensors", sha256(data).hexdigest(), len(data))
    files = tuple(entry if old.path == entry.path else old for old in one.files)
    evil = replace(one, version="v9", files=files)
    folder = tmp_path / "evil"  # a publisher that does not look: all digests are right, and its signature too
    shutil.copytree(source.registry.folder(one.reference), folder)
    (folder / entry.path).unlink()
    (folder / entry.path).write_bytes(data)
    (folder / MANIFEST_NAME).write_text(evil.to_json())
    signature = sign(folder, source.key).read_bytes()

    def fetch(wanted: FileEntry, part: Path) -> None:
        part.write_bytes((folder / wanted.path).read_bytes())

    act = lambda: cache.activate(evil, text=evil.to_json(), signature=signature, fetch=fetch)  # noqa: E731
    refused(cache, one, act, r"unet/w\.safetensors.*pickle")
    refused(CheckpointCache(cache.root, policy=cache.policy), one, act, "pickle")


def test_what_was_changed_on_the_disk_is_not_served(signed: tuple[Source, CheckpointCache, Manifest]) -> None:
    source, cache, one = signed
    folder = cache.path()
    (folder / SIGNATURE_NAME).unlink()
    with pytest.raises(CheckpointError, match="not signed"):
        cache.path()
    source.activate(cache, one)
    (folder / MANIFEST_NAME).chmod(0o644)
    (folder / MANIFEST_NAME).write_text(source.text(one).replace('"round": 0', '"round": 1'))
    with pytest.raises(CheckpointError, match="does not hold"):
        cache.path()
    source.activate(cache, one)
    assert cache.path() == folder


def test_a_node_that_begins_to_ask_for_signatures_refuses_what_it_holds_unsigned(
    source: Source, cache: CheckpointCache, tmp_path: Path
) -> None:
    one = source.publish("one")
    source.activate(cache, one)
    private, public = generate_keys(tmp_path / "keys")
    strict = CheckpointCache(cache.root, policy=TrustPolicy(True, [public]))
    assert strict.sound_digest() == ""
    source.key = private
    source.publish("one")  # signs the version that is there
    source.activate(strict, one)
    assert strict.sound_digest() == one.digest and len(source.sent) == 3
