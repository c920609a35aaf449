"""`fedkd federate`: options that do not fit are named before anything is started."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedkd.cli.main import app
from fedkd.serving.loopback import free_port
from server.credentials import CA, CERTIFICATE, KEY, make_certificates
from server.processes import last_error


def said(*words: str) -> str:
    done = CliRunner().invoke(app, ["federate", *words])
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["quickstart"], "give --root-certificates FILE"),
        (["quickstart", "--insecure", "--root-certificates", "ca.crt"], "give --root-certificates FILE"),
        (["quickstart", "--netns"], "--netns is for --local"),
        (["quickstart", "--local", "--insecure"], "--local starts a SuperLink of its own"),
        (["quickstart", "--insecure", "--superlink", "here"], "is not HOST:PORT"),
        (["quickstart", "--root-certificates", "/nowhere/ca.crt"], "no such file"),
    ],
)
def test_options_that_do_not_fit(words: list[str], expected: str) -> None:
    assert expected in said(*words)


def test_no_superlink() -> None:
    place = f"127.0.0.1:{free_port()}"
    assert f"no SuperLink answers at {place}" in said("quickstart", "--insecure", "--superlink", place)


def test_a_recipe_of_another_kind_names_its_verb(tmp_path: Path) -> None:
    assert "run: fedkd distill distill-federated" in said("distill-federated", f"run.out={tmp_path}", "--local")


@contextmanager
def listening(certificates: Path | None) -> Iterator[str]:
    """HOST:PORT of something that accepts connections, with TLS where there are certificates."""
    context = None
    if certificates:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / CERTIFICATE, certificates / KEY)

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                if context:
                    context.wrap_socket(connection, server_side=True).close()
                else:
                    connection.recv(1)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_certificate_that_does_not_fit_is_told_before_a_run_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("right", "wrong"):
        make_certificates(tmp_path / name, ["127.0.0.1"])
    (tmp_path / "none.crt").write_text("no certificate")
    with listening(tmp_path / "right") as place:
        words = ["quickstart", "--superlink", place, "--root-certificates"]
        assert "does not fit the SuperLink" in said(*words, str(tmp_path / "wrong" / CA))
        assert "no certificate in PEM" in said(*words, str(tmp_path / "none.crt"))
        assert "--registry-host" in said(*words, str(tmp_path / "right" / CA))  # the handshake went well
    make_certificates(tmp_path / "named", ["localhost"])
    with listening(tmp_path / "named") as place:
        port = place.rpartition(":")[2]
        words = ["quickstart", "--superlink", f"localhost:{port}", "--root-certificates"]
        assert "the SuperLink's certificate is not for 127.0.0.1" in said(*words, str(tmp_path / "named" / CA))
    with listening(None) as place:
        plain = ["quickstart", "--superlink", place, "--root-certificates", str(tmp_path / "right" / CA)]
        assert "speaks no TLS" in said(*plain)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("Loading\n╭─ Error ───╮\n│ Failed to start local SuperLink within  │\n│ 15s.  │\n╰──────╯\n", "within 15s."),
        ("INFO : one\nERROR :     the disk is full\nINFO :      Connection successful\n", "the disk is full"),
        ("INFO : one\nlast words\n", "last words"),
        ("", "Flower did not start"),
    ],
)
def test_what_flower_said_last_is_told_without_its_box(log: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "flower.log"
    path.write_text(log, encoding="utf-8")
    assert " ".join(last_error(tmp_path, path)[0].split()).endswith(expected)
