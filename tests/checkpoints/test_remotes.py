"""Remotes: which place a URL means, what a store's own failures become, and writes that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd.checkpoints.http_remote import HttpRemote
from fedkd.checkpoints.hub import HubRemote, repository
from fedkd.checkpoints.local_remote import LocalRemote
from fedkd.checkpoints.manifest import CheckpointError, FileEntry, Manifest, file_digest
from fedkd.checkpoints.remotes import Remote, blob_path, open_remote, shown
from tests.checkpoints.web import Broken


@pytest.fixture()
def blob(tmp_path: Path) -> tuple[Path, FileEntry]:
    source = tmp_path / "w.safetensors"
    source.write_bytes(bytes(range(256)) * 100)
    return source, FileEntry("unet/w.safetensors", file_digest(source), source.stat().st_size)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("some/folder", LocalRemote),
        ("/some/folder", LocalRemote),
        ("file:///some/folder", LocalRemote),
        ("memory://bucket", Remote),
        ("http://127.0.0.1:9", HttpRemote),
        ("https://host.example/registry", HttpRemote),
        ("hf:me/model", HubRemote),
    ],
)
def test_a_url_says_what_it_is(url: str, kind: type[Remote]) -> None:
    assert type(open_remote(url)) is kind


def test_a_local_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    remote = open_remote("here")
    assert isinstance(remote, LocalRemote) and remote.registry.root == tmp_path / "here"


@pytest.mark.parametrize("url", ["gopher://x/y", "s3x:bucket", "nonsense:x"])
def test_a_place_that_is_none_names_those_that_are(url: str) -> None:
    with pytest.raises(CheckpointError, match="give a folder, file:///PATH, s3://BUCKET/PATH"):
        open_remote(url)


@pytest.mark.parametrize("url", ["hf:me", "hf:me/a/b", "hf:me/a b"])
def test_a_repository_has_an_owner_and_a_name(url: str) -> None:
    with pytest.raises(CheckpointError, match="hf:OWNER/NAME"):
        repository(url)
    assert repository("hf:me/model@v1") == ("me/model", "v1") and repository("hf://me/model") == ("me/model", "")


def test_a_bare_host_means_the_registrys_own_service() -> None:
    assert HttpRemote("http://h:1").url == "http://h:1/v1/registry"
    assert HttpRemote("http://h:1/static/").url == "http://h:1/static"


def test_a_password_in_a_url_is_not_shown() -> None:
    assert shown("https://me:secret@host/path") == "https://host/path"


def test_a_blob_reads_back_from_any_place(blob: tuple[Path, FileEntry], tmp_path: Path) -> None:
    source, entry = blob
    remote = open_remote(f"memory://{tmp_path.name}")
    assert not remote.has(entry) and remote.read("names/m/latest") is None and remote.list("versions") == []
    sent: list[int] = []
    remote.put_blob(source, entry, sent.append)
    assert remote.has(entry) and sent == [entry.size]
    assert b"".join(remote.chunks(entry, 0)) == source.read_bytes()
    assert b"".join(remote.chunks(entry, 1000)) == source.read_bytes()[1000:]


def test_where_writes_are_not_whole_a_name_comes_by_a_move(blob: tuple[Path, FileEntry], tmp_path: Path) -> None:
    source, entry = blob
    remote = Remote((tmp_path / "there").as_uri())  # a plain file system without the registry's own care
    remote.put_blob(source, entry, lambda _: None)
    remote.put_text("names/m/latest", b"v0")
    remote.put_text("names/m/latest", b"v1")
    assert remote.has(entry) and remote.read("names/m/latest") == b"v1" and remote.list("names") == ["m"]
    assert not list((tmp_path / "there").rglob("*.part"))


def test_a_server_without_ranges_is_gone_on_with_too(blob: tuple[Path, FileEntry], tmp_path: Path) -> None:
    source, entry = blob
    target = tmp_path / "there" / blob_path(entry.sha256)
    target.parent.mkdir(parents=True)
    target.write_bytes(source.read_bytes())
    with Broken(tmp_path / "there", ranges=False).running() as url:
        assert b"".join(bytes(piece) for piece in HttpRemote(url).chunks(entry, 1000)) == source.read_bytes()[1000:]


def test_a_token_is_not_carried_to_another_host(tmp_path: Path) -> None:
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "x").write_text("v0")
    other = Broken(tmp_path)
    with other.running() as url:
        first = Broken(tmp_path, redirect=url.replace("127.0.0.1", "localhost"))
        with first.running() as start:
            assert HttpRemote(start, token="secret").read("names/x") == b"v0"
    assert first.tokens == ["Bearer secret"] and other.tokens == [""]


def test_a_stores_own_failure_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "names" / "m" / "latest").mkdir(parents=True)  # a folder where a file should be
    with pytest.raises(CheckpointError, match="cannot be reached, or went away") as error:
        Remote(tmp_path.as_uri()).read("names/m/latest")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["memory", "s3", "folder"])
def test_of_two_who_settle_one_version_at_once_the_second_is_refused(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = {"memory": f"memory://{tmp_path.name}", "folder": str(tmp_path / "there")}.get(place)
    remote = open_remote(url or request.getfixturevalue("s3"))
    empty = Manifest("m", "v0", ())
    remote.settle(empty, empty.to_json().encode(), b"")
    remote.settle(empty, empty.to_json().encode(), b"")  # the same again is no harm
    rival = Manifest("m", "v0", (), licence="mit")
    with pytest.raises(CheckpointError, match="has another m:v0"):
        remote.settle(rival, rival.to_json().encode(), b"rival")
    assert remote.read("versions/m/v0/manifest.json") == empty.to_json().encode()
    assert remote.read("versions/m/v0/model.sig") is None
