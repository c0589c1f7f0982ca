"""Files over HTTP: serving, ranges, protected files, thumbs, uploads, hostile names, crashes, memory."""
import hashlib
import http.client
import io
import json
import os
import socket
import struct
import threading
import zlib

from PIL import Image
import pytest

FIELDS = [{"name": "one", "type": "file", "maxSelect": 1, "maxSize": 1 << 32, "thumbs": ["30x40", "30x40t", "30x40b", "30x40f", "50x0", "0x50", "90000x90000"]},
          {"name": "many", "type": "file", "maxSelect": 9}, {"name": "priv", "type": "file", "maxSelect": 1, "protected": True}, "owner"]
RECORDS = "/api/collections/docs/records"


@pytest.fixture(scope="module", autouse=True)
def docs(server):
    return server.make("docs", FIELDS, viewRule="owner = '' || owner = @request.auth.id")


def encoded(image, form, **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def picture(width=60, height=40, form="PNG", mode="RGB", **options):
    """Red above, blue below."""
    image = Image.new(mode, (width, height), "blue" if mode != "L" else 20)
    image.paste("red" if mode != "L" else 200, (0, 0, width, height // 2))
    return encoded(image, form, **options)


def png_claiming(width, height):
    """A small PNG whose head claims any size."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"\0" * 10000)) + chunk(b"IEND", b""))


def add(server, name, data, field="one", **form):
    record = server.add("docs", form={field: (name, data), **form})
    return f"/api/files/docs/{record['id']}/{record[field][0] if isinstance(record[field], list) else record[field]}", record


def stored(server):
    """Paths below the storage, without directories."""
    root = os.path.join(server.dir, "storage")
    return sorted(os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names)


def peak_mb(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


# ---- serving

@pytest.mark.parametrize("spec, status, body", [
    ("bytes=0-9", 206, b"0123456789"), ("bytes=-3", 206, b"789"), ("bytes=195-", 206, b"56789"), ("bytes=0-0,198-", 206, None),
    ("bytes=200-", 416, b"invalid range: failed to overlap\n"), ("bytes=x", 416, None), ("lines=1-2", 416, None)])
def test_ranges(server, spec, status, body):
    url, _ = add(server, "a.txt", b"0123456789" * 20)
    answer = server.get(url, headers={"Range": spec})
    assert answer.status == status and (body is None or answer.body == body)
    assert server.head(url, headers={"Range": spec}).status == status


def test_range_of_a_large_file_is_exact(server):
    data = bytes(range(256)) * 20000
    url, _ = add(server, "large.bin", data)
    assert server.get(url).body == data
    assert server.get(url, headers={"Range": "bytes=100000-3100000"}).body == data[100000:3100001]
    assert int(server.head(url).headers["Content-Length"]) == len(data)


def test_conditions(server):
    url, _ = add(server, "a.txt", b"x")
    modified = server.get(url).headers["Last-Modified"]
    assert server.get(url, headers={"If-Modified-Since": modified}).status == 304
    assert server.get(url, headers={"If-Unmodified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"}).status == 412
    assert server.get(url, headers={"If-Range": "Mon, 01 Jan 2001 00:00:00 GMT", "Range": "bytes=0-0"}).status == 200


@pytest.mark.parametrize("name, data", [("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"), ("a.html", b"<html><script>1</script></html>"),
                                        ("a.xml", b"<?xml version='1.0'?><a/>"), ("a.png", b"<html>a page that calls itself a picture</html>")])
def test_active_content_is_a_sandboxed_download(server, name, data):
    headers = server.get(add(server, name, data)[0]).headers
    assert headers["Content-Disposition"].startswith("attachment") and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; media-src 'self'; style-src 'unsafe-inline'; sandbox"


def test_files_of_a_private_record_are_private(server):
    owner, other = server.add_user("owner@example.com"), server.add_user("other@example.com")
    url, _ = add(server, "secret.txt", b"secret", "priv", owner=owner["id"])
    assert other["id"] != owner["id"]
    tokens = {name: server.post("/api/files/token", token=server.login("users", f"{name}@example.com")).json["token"] for name in ("owner", "other")}
    assert server.get(url).status == server.get(url, token=server.su).status == 404
    assert server.get(url, params={"token": tokens["other"]}).status == 404
    assert server.get(url, params={"token": server.login("users", "owner@example.com")}).status == 404
    assert server.get(url, params={"token": tokens["owner"]}).body == b"secret"


# ---- thumbs

SIZES = {"30x40": (30, 40), "30x40t": (30, 40), "30x40b": (30, 40), "30x40f": (30, 20), "50x0": (50, 33), "0x50": (75, 50), "100x100": (100, 100)}
KINDS = [("PNG", "RGB", "PNG"), ("PNG", "RGBA", "PNG"), ("PNG", "L", "PNG"), ("PNG", "P", "PNG"), ("PNG", "1", "PNG"), ("PNG", "I;16", "PNG"), ("JPEG", "RGB", "JPEG"),
         ("JPEG", "L", "JPEG"), ("JPEG", "CMYK", "JPEG"), ("GIF", "P", "GIF"), ("GIF", "RGBA", "GIF"), ("WEBP", "RGB", "PNG"), ("WEBP", "RGBA", "PNG")]


@pytest.mark.parametrize("form, mode, made", KINDS)
def test_every_thumb_format_of_every_image_kind(server, form, mode, made):
    image = Image.new("I;16", (60, 40), 40000) if mode == "I;16" else Image.open(io.BytesIO(picture())).convert(mode)
    url, _ = add(server, "a." + form.lower(), encoded(image, form))
    for size, expected in SIZES.items():
        answer = server.get(url + "?thumb=" + size)
        thumb = Image.open(io.BytesIO(answer.body))
        assert (thumb.size, thumb.format) == (expected, made), size
        assert answer.headers["Content-Type"] == "image/" + made.lower()
        assert answer.headers["Content-Disposition"] == f'inline; filename="{size}_{url.rpartition("/")[2]}"'
        if mode == "I;16":
            assert abs(thumb.getpixel((5, 5)) - 156) < 3


def test_thumb_is_cut_from_where_it_says(server):
    url, _ = add(server, "a.png", picture(40, 200))
    top, bottom = (Image.open(io.BytesIO(server.get(f"{url}?thumb=30x40{side}").body)).convert("RGB") for side in "tb")
    assert top.getpixel((15, 20)) == (255, 0, 0) and bottom.getpixel((15, 20)) == (0, 0, 255)


def test_thumb_of_a_turned_photo_stands_upright(server):
    exif = Image.Exif()
    exif[0x0112] = 6
    url, _ = add(server, "a.jpg", picture(600, 400, "JPEG", exif=exif.tobytes()))
    thumb = Image.open(io.BytesIO(server.get(url + "?thumb=50x0").body))
    assert thumb.size == (50, 75) and not thumb.getexif()
    assert thumb.getpixel((45, 37))[0] > 200 and thumb.getpixel((5, 37))[2] > 200      # the upper half lies on the right now


def test_thumb_of_an_animation_is_its_first_frame(server):
    frames = [Image.new("RGB", (60, 40), (n % 256, 255 - n % 256, 0)) for n in range(500)]
    url, _ = add(server, "a.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    thumb = Image.open(io.BytesIO(server.get(url + "?thumb=50x0").body))
    assert getattr(thumb, "n_frames", 1) == 1 and thumb.convert("RGB").getpixel((5, 5)) == (0, 255, 0)


@pytest.mark.parametrize("size", ["10x10", "0x0", "", "../../data.db", "100x100/../../x", "1e9x1", "90000x90000", "100x100%00"])
def test_other_sizes_give_the_original(server, size):
    data = picture()
    url, _ = add(server, "a.png", data)
    assert server.get(f"{url}?thumb={size}").body == data


@pytest.mark.parametrize("data", [picture()[:60], picture(form="JPEG")[:300], picture(form="WEBP")[:40], png_claiming(500, 500), b"GIF89a\xff\xff\xff\xff\0\0\0;"])
def test_broken_images_give_the_original(server, data):
    url, _ = add(server, "a.png", data)
    for _ in range(2):
        answer = server.get(url + "?thumb=100x100")
        assert (answer.status, answer.body) == (200, data)


def test_thumbs_go_with_their_file(server):
    url, record = add(server, "a.png", picture())
    server.get(url + "?thumb=100x100")
    place = os.path.join("docs", record["id"])
    assert any(record["id"] in path and "thumbs_" in path for path in stored(server)), place
    server.delete(f"{RECORDS}/{record['id']}", token=server.su)
    add(server, "b.txt", b"x")
    _wait(lambda: not any(record["id"] in path for path in stored(server)))


def _wait(done, seconds=60):
    """Waits for background work; it fails when nothing happens in a minute."""
    event = threading.Event()
    for _ in range(seconds * 100):
        if done():
            return
        event.wait(0.01)
    raise AssertionError("never happened")


def test_many_requests_make_one_thumb(fresh):
    server = fresh()
    server.make("docs", FIELDS)
    url, record = add(server, "a.png", picture(3000, 2000))
    answers, threads = [], []
    for _ in range(40):
        threads.append(threading.Thread(target=lambda: answers.append(server.get(url + "?thumb=50x0"))))
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len({answer.body for answer in answers}) == 1 and len(answers) == 40
    with Image.open(io.BytesIO(answers[0].body)) as thumb:
        assert thumb.size == (50, 33)
    assert sum("thumbs_" in path and path.endswith(".png") for path in stored(server)) == 1


def noise_jpeg(width, height, **options):
    """A photo-like JPEG of about 5 MB at 12 megapixels."""
    noise = Image.effect_noise((width // 2, height // 2), 60).resize((width, height))
    return encoded(Image.merge("RGB", (noise, noise, noise)), "JPEG", quality=92, **options)


def test_photos_and_huge_claims_stay_within_memory(fresh):
    server = fresh()
    server.make("docs", FIELDS)
    photos = [noise_jpeg(4000, 3000), noise_jpeg(4000, 3000, progressive=True), picture(6000, 5000), picture(4000, 3000, mode="RGBA"), picture(3500, 2500, "WEBP"),
              png_claiming(60000, 60000), png_claiming(1 << 30, 1 << 30), png_claiming(7000, 7000)]
    urls = [add(server, f"a{n}.png", photos[n % len(photos)])[0] for n in range(80)]
    statuses = []
    threads = [threading.Thread(target=lambda url=url: statuses.append(server.get(url + "?thumb=100x100").status)) for url in urls]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert statuses == [200] * 80
    print(f"peak {peak_mb(server):.0f} MB")
    assert peak_mb(server) < 300


# ---- uploads

NAMES = [("../../../evil.txt", "evil_"), ("a\\..\\b.txt", "a"), ("x" * 10000 + ".txt", "x" * 100 + "_"), ("CON.txt", "con_"), ("..", ""), (".htaccess", ""),
         ("\u202egnp.exe", "gnp_"), ("a\u200fb.txt", "a_b_"), ("%2e%2e%2fx.txt", "2e_2e_2fx_"), ("a;b='c'.txt", "a_b_c_")]


@pytest.mark.parametrize("name, start", NAMES)
def test_hostile_names_become_harmless(server, name, start):
    url, record = add(server, name, b"text")
    made = record["one"]
    assert made.startswith(start) and made.isascii() and len(made) < 150 and not set(made) & set("/\\\0\"'<>|:?") and made.strip(".") == made
    assert server.get(url).body == b"text"
    assert all(path.split(os.sep)[1] == record["id"] for path in stored(server) if made in path)


HEAD = b'--X\r\nContent-Disposition: form-data; name="one"; filename="a.bin"\r\n\r\n'


@pytest.mark.parametrize("words, name", [
    ('filename="../../etc/passwd"', "passwd"), ('filename="a/"', "a"), ('filename="/"', "/"), (r'filename="a\\b.txt"', r"a\b.txt"), (r'filename="C:\x\y.txt"', r"C:\x\y.txt"),
    (r'filename="a\"b.txt"', 'a"b.txt'), ('filename=plain.txt', "plain.txt"), ('filename = "abc.txt" ', "abc.txt"), ('FILENAME="x;y=.txt"; size=3', "x;y=.txt"),
    ("filename*=UTF-8''%e2%82%ac%20rates.txt", "€ rates.txt"), ("filename=\"a.txt\"; filename*=UTF-8''b%2Fc.txt", "c.txt"),
    ('filename*0="abc"; filename*1="def.txt"', "abcdef.txt"), ('filename="über.txt"', "über.txt")])
def test_a_name_is_read_from_every_form_of_the_header(server, words, name):
    body = HEAD.replace(b'filename="a.bin"', words.encode()) + b"text\r\n--X--\r\n"
    record = server.post(RECORDS, body=body, headers={"Content-Type": "multipart/form-data; boundary=X"}).json
    sidecar, = [path for path in stored(server) if path.endswith(record["one"] + ".attrs")]
    with open(os.path.join(server.dir, "storage", sidecar)) as file:
        assert json.load(file)["user.metadata"] == {"original-filename": name}


def test_an_empty_file_input_is_no_file(server):
    boundary = b'--X\r\nContent-Disposition: form-data; name="one"; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n\r\n--X--\r\n'
    answer = server.post(RECORDS, body=boundary, headers={"Content-Type": "multipart/form-data; boundary=X"})
    assert answer.status == 200 and answer.json["one"] == ""


@pytest.mark.parametrize("body", [HEAD, HEAD + b"data", HEAD + b"data\r\n--X", HEAD + b"data\r\n--Y--", b"--X\r\nbroken", b"", b"--X\r\nno colon\r\n\r\nx\r\n--X--",
                                  *[HEAD.replace(b"a.bin", b"a" + control + b".bin") + b"x\r\n--X--\r\n" for control in (b"\0", b"\x01", b"\x7f")],
                                  b"--X\r\n" + b"a" * 100000, HEAD + b"1" * 3_000_000])
def test_a_broken_upload_leaves_nothing(server, body):
    before, count = stored(server), server.db("select count(*) from docs")
    answer = server.post(RECORDS, body=body or b" ", headers={"Content-Type": "multipart/form-data; boundary=X"})
    assert answer.status == 400
    assert (stored(server), server.db("select count(*) from docs")) == (before, count)
    assert os.listdir(os.path.join(server.dir, ".pb_temp_to_delete")) == [] if os.path.exists(os.path.join(server.dir, ".pb_temp_to_delete")) else True


def test_content_that_looks_like_a_boundary_survives(server):
    for data in (b"\r\n--Xyz\r\n--\r\n-", b"\r\n" * 50000 + b"--Y", b"\r", b"\r\n--", b"a\r\n--XX\r\n", b"--X"):
        body = HEAD + data + b"\r\n--X--\r\n"
        record = server.post(RECORDS, body=body, headers={"Content-Type": "multipart/form-data; boundary=X"}).json
        assert server.get(f"/api/files/docs/{record['id']}/{record['one']}").body == data


def test_a_client_that_leaves_during_an_upload_leaves_nothing(server):
    before = stored(server)
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"POST /api/collections/docs/records HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=X\r\nContent-Length: 9000000\r\n\r\n"
                     + HEAD + b"1" * 5_000_000)
    _wait(lambda: not os.listdir(os.path.join(server.dir, ".pb_temp_to_delete")))
    assert stored(server) == before


def upload_stream(server, size, block=b"0123456789abcdef" * 65536):
    """Streams a file of that size from no memory; (answer, MD5 of the content)."""
    digest, tail = hashlib.md5(), b"\r\n--X--\r\n"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    connection.putrequest("POST", RECORDS)
    connection.putheader("Content-Type", "multipart/form-data; boundary=X")
    connection.putheader("Content-Length", str(len(HEAD) + size + len(tail)))
    connection.endheaders(HEAD)
    for at in range(0, size, len(block)):
        piece = block[:size - at]
        digest.update(piece)
        connection.send(piece)
    connection.send(tail)
    answer = connection.getresponse()
    return json.loads(answer.read()), digest.digest()


def test_a_2_gb_upload_needs_no_memory(fresh):
    server = fresh()
    server.make("docs", FIELDS)
    add(server, "warm.bin", b"1" * 3_000_000)
    before = peak_mb(server)
    size = int(os.environ.get("UPLOAD_BYTES", 2 << 30))
    record, digest = upload_stream(server, size)
    grown = peak_mb(server) - before
    print(f"grew by {grown:.1f} MB")
    assert grown < 50
    [path] = [path for path in stored(server) if path.endswith(record["one"])]
    path = os.path.join(server.dir, "storage", path)
    assert os.path.getsize(path) == size
    with open(path + ".attrs") as sidecar:
        import base64
        assert base64.b64decode(json.load(sidecar)["md5"]) == digest
    assert os.listdir(os.path.join(server.dir, ".pb_temp_to_delete")) == []


@pytest.mark.parametrize("seed", range(4))
def test_after_a_crash_no_record_names_a_missing_file(fresh, seed):
    server = fresh()
    server.make("docs", FIELDS)
    acknowledged = []

    def work(number):
        try:
            while True:
                acknowledged.append(add(server, f"a{number}.bin", os.urandom(10) * 150_000 if number % 2 else b"small")[1])
        except (OSError, http.client.HTTPException, AssertionError, AttributeError):
            pass
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    _wait(lambda: len(acknowledged) > 7 * (seed + 1))
    server.kill9()
    [thread.join() for thread in threads]
    server.start()
    paths = {path.split(os.sep, 1)[1] for path in stored(server)}
    rows = server.db("select id, one from docs")
    assert len(rows) >= len(acknowledged) and all(os.path.join(*row) in paths for row in rows)
    assert all(server.get(f"/api/files/docs/{id}/{name}").status == 200 for id, name in rows)
    assert not os.path.exists(os.path.join(server.dir, ".pb_temp_to_delete"))


def test_orphans_are_removed_and_nothing_else(fresh):
    server = fresh()
    collection = server.make("docs", FIELDS)
    url, record = add(server, "keep.png", picture())
    server.get(url + "?thumb=100x100")
    kept, root = stored(server), os.path.join(server.dir, "storage")
    folder = os.path.join(root, collection["id"])
    old = [os.path.join(folder, "gone00000000000", "a.txt"), os.path.join(folder, record["id"], "stray.txt"), os.path.join(folder, record["id"], "b.txt.18a9f3b2c4d5e6f7.tmp"),
           os.path.join(folder, record["id"], "thumbs_stray.txt", "9x9_stray.txt"), os.path.join(root, "pbc_1234567890", "x", "a.txt"), os.path.join(folder, "lonely", "a.txt.attrs")]
    others = [os.path.join(root, "mine", "x", "a.txt"), os.path.join(folder, "fresh0000000000", "a.txt")]
    for path in old + others:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "w").close()
        if path != others[1]:
            os.utime(path, (1, 1))
    assert server.post("/api/crons/__pbDBOptimize__", token=server.su).status == 204
    _wait(lambda: not any(map(os.path.exists, old)))
    assert stored(server) == sorted(kept + [os.path.relpath(path, root) for path in others])
    assert "rphan" not in server.get("/api/crons", token=server.su).text
