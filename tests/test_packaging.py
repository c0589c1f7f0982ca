"""The frozen executable and the zipapp work on their own, in an empty folder."""
import os
import struct
import subprocess
import sys
import zlib

import pytest

import kit

pytestmark = pytest.mark.last
LARGEST = 35 * 2**20    # bytes
PYTHON = os.path.realpath(sys.executable)    # the interpreter behind the virtual environment, which has none of its packages


@pytest.fixture(scope="module", params=["pocketbase", "pocketbase.pyz"])
def program(request, tmp_path_factory):
    """The command of a freshly built program."""
    built = subprocess.run(["make", f"dist/{request.param}"], cwd=kit.HOME, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert built.returncode == 0, built.stdout
    path = os.path.join(kit.HOME, "dist", request.param)
    os.environ["SHIV_ROOT"] = str(tmp_path_factory.mktemp("unpacked"))    # else the zipapp unpacks into the user's home
    yield [PYTHON, path] if path.endswith(".pyz") else [path]
    del os.environ["SHIV_ROOT"]


def png(size):
    """A black picture."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    pixels = zlib.compress((b"\0" + bytes(3 * size)) * size)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_it_is_small_enough(program):
    assert os.path.getsize(program[-1]) < LARGEST


def test_version_and_help_leave_nothing_behind(program, tmp_path):
    assert kit.run(["--version"], program, cwd=tmp_path).stdout.startswith("pocketbase version ")
    assert "serve" in kit.run(["--help"], program, cwd=tmp_path).stdout
    assert os.listdir(tmp_path) == []


def test_it_serves_from_an_empty_folder(program, tmp_path):
    data = str(tmp_path / "pb_data")
    made = kit.run(["superuser", "upsert", *kit.SUPERUSER, "--dir", data], program, cwd=tmp_path)
    assert made.stdout.strip() == 'Successfully saved superuser "root@example.com"!'
    with kit.Server(dir=data, command=program) as server:
        server.make("posts", ["title"])
        record = server.add("posts", {"title": "frozen"})
        assert server.get(f"/api/collections/posts/records/{record['id']}").json == record
        assert server.get("/_/").headers["Content-Type"].startswith("text/html")
        assert server.stop() == 0
    assert server.db("SELECT title FROM posts") == [("frozen",)]


def test_what_is_imported_late_is_there(program):
    """Patterns (re2), thumbnails (Pillow) and encrypted settings (cryptography)."""
    with kit.Server("--encryptionEnv", "KEY", command=program, env={"KEY": "k" * 32}) as server:
        server.make("posts", [{"name": "code", "type": "text", "pattern": "^[a-z]+$"}, {"name": "image", "type": "file", "maxSelect": 1}])
        assert server.post("/api/collections/posts/records", {"code": "123"}).json["data"]["code"]["code"] == "validation_invalid_format"
        record = server.add("posts", form={"code": "abc", "image": ("a.png", png(300))})
        thumb = server.get(f"/api/files/posts/{record['id']}/{record['image']}?thumb=100x100")
        assert struct.unpack(">II", thumb.body[16:24]) == (100, 100)
        assert server.settings(meta={"appName": "frozen"})["meta"]["appName"] == "frozen"
        assert not server.db("SELECT value FROM _params WHERE id = 'settings'")[0][0].startswith("{")
