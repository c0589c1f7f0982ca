"""Uploads kept in an S3 bucket: a real S3 API server (moto), started here."""
import io
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree

from PIL import Image
from requests_aws4auth import AWS4Auth
import pytest
import requests

import kit
from unit import pocketbase

KEY, SECRET, REGION = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "us-east-1"
FIELDS = [{"name": "one", "type": "file", "maxSelect": 1, "maxSize": 1 << 30, "thumbs": ["50x0"]}, {"name": "priv", "type": "file", "maxSelect": 1, "protected": True}]


class Bucket:
    """The S3 server and one bucket, as another client sees them."""

    def __init__(self, log):
        self.port, self.name = kit.free_port(), "uploads"
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)], stdout=log, stderr=log)
        end = time.monotonic() + kit.PATIENCE
        while True:
            try:
                assert self.ask("PUT", f"/{self.name}").status_code == 200
                return
            except requests.ConnectionError:
                assert time.monotonic() < end and self.process.poll() is None
                time.sleep(0.05)

    def ask(self, method, path, **options):
        return requests.request(method, self.endpoint + path, auth=AWS4Auth(KEY, SECRET, REGION, "s3"), timeout=60, **options)

    def keys(self, prefix=""):
        page = ElementTree.fromstring(self.ask("GET", f"/{self.name}?list-type=2&prefix=" + urllib.parse.quote(prefix, safe="")).content)
        return sorted(item.findtext("{*}Key") for item in page.iterfind("{*}Contents"))

    def unfinished(self):
        page = ElementTree.fromstring(self.ask("GET", f"/{self.name}?uploads").content)
        return [item.findtext("{*}Key") for item in page.iterfind("{*}Upload")]

    def settings(self, **changes):
        return {"enabled": True, "bucket": self.name, "region": REGION, "endpoint": self.endpoint, "accessKey": KEY, "secret": SECRET, "forcePathStyle": True, **changes}

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with open(tmp_path_factory.mktemp("s3") / "moto.log", "wb") as log:
        made = Bucket(log)
        yield made
        made.close()


@pytest.fixture(scope="module")
def docs(server, bucket):
    server.settings(s3=bucket.settings())
    server.docs = server.make("docs", FIELDS)
    return server


def add(server, name, data, field="one"):
    record = server.add("docs", form={field: (name, data)})
    return f"/api/files/docs/{record['id']}/{record[field]}", f"{server.docs['id']}/{record['id']}/{record[field]}", record


def wait(done):
    end = time.monotonic() + kit.PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_upload_and_download(docs, bucket):
    url, key, _ = add(docs, "Tést äb.txt", b"0123456789")
    answer = docs.get(url)
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"0123456789", "text/plain; charset=utf-8")
    assert docs.get(url, headers={"Range": "bytes=2-4"}).body == b"234"
    assert docs.get(url, headers={"Range": "bytes=0-0,9-9"}).body.count(b"Content-Range") == 2
    assert docs.get(url, headers={"Range": "bytes=10-"}).status == 416
    assert docs.head(url).headers["Content-Length"] == "10"
    assert docs.get(url, headers={"If-Modified-Since": answer.headers["Last-Modified"]}).status == 304
    there = bucket.ask("HEAD", f"/{bucket.name}/{key}")
    assert (there.headers["Content-Type"], there.headers["x-amz-meta-original-filename"]) == ("text/plain; charset=utf-8", "T%C3%A9st%20%C3%A4b.txt")
    assert not os.path.exists(os.path.join(docs.dir, "storage"))


@pytest.mark.parametrize("size", [0, 1, 6 * 2 ** 20 - 1, 6 * 2 ** 20, 6 * 2 ** 20 + 1, 20_000_003])
def test_every_size_arrives_whole(docs, bucket, size):
    data = os.urandom(1000) * (size // 1000 + 1)
    url, _, _ = add(docs, "a.bin", data[:size])
    assert docs.get(url).body == data[:size]
    if size > 100:
        assert docs.get(url, headers={"Range": f"bytes={size - 100}-"}).body == data[size - 100:size]
        assert docs.get(url, headers={"Range": "bytes=50-1000049"}).body == data[50:min(size, 1000050)]
    assert bucket.unfinished() == []


def test_thumbs_are_made_once_and_go_with_the_file(docs, bucket):
    out = io.BytesIO()
    Image.new("RGB", (600, 400), "red").save(out, "JPEG")
    url, key, record = add(docs, "a.jpg", out.getvalue())
    for _ in range(2):
        answer = docs.get(url + "?thumb=50x0")
        assert Image.open(io.BytesIO(answer.body)).size == (50, 33) and answer.headers["Content-Type"] == "image/jpeg"
    folder, _, name = key.rpartition("/")
    assert bucket.keys(folder) == [key, f"{folder}/thumbs_{name}/50x0_{name}"]
    assert docs.patch(f"/api/collections/docs/records/{record['id']}", {"one": ""}).status == 200
    wait(lambda: bucket.keys(folder) == [])
    assert docs.get(url).status == docs.get(url + "?thumb=50x0").status == 404


def test_a_deleted_record_takes_its_files(docs, bucket):
    _, key, record = add(docs, "a.txt", b"x")
    assert docs.delete(f"/api/collections/docs/records/{record['id']}").status == 204
    wait(lambda: bucket.keys(key.rpartition("/")[0]) == [])


def test_a_refused_record_leaves_nothing(docs, bucket):
    before = bucket.keys()
    assert docs.post("/api/collections/docs/records", form={"id": "no", "one": ("a.txt", b"x")}).status == 400
    assert docs.post("/api/collections/docs/records", body=b'--X\r\nContent-Disposition: form-data; name="one"; filename="a"\r\n\r\n' + b"x" * 7_000_000,
                     headers={"Content-Type": "multipart/form-data; boundary=X"}).status == 400
    assert bucket.keys() == before and bucket.unfinished() == []


def test_protected_files_stay_protected(docs):
    url, _, _ = add(docs, "a.txt", b"secret", "priv")
    docs.patch("/api/collections/docs", {"viewRule": None}, token=docs.su)
    try:
        assert docs.get(url).status == 404
        token = docs.post("/api/files/token", token=docs.su).json["token"]
        assert docs.get(url, params={"token": token}).body == b"secret"
    finally:
        docs.patch("/api/collections/docs", {"viewRule": ""}, token=docs.su)


def test_memory_of_a_large_upload_is_bounded(docs):
    def peak():
        with open(f"/proc/{docs.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    add(docs, "warm.bin", b"x" * 30_000_000)
    before = peak()
    url, _, _ = add(docs, "a.bin", b"0123456789" * 20_000_000)
    assert docs.head(url).headers["Content-Length"] == "200000000"
    print(f"grew by {peak() - before:.0f} MB")
    assert peak() - before < 50


def test_settings_test(docs, bucket):
    def check(filesystem):
        answer = docs.post("/api/settings/test/s3", {"filesystem": filesystem}, token=docs.su)
        return answer.status, answer.json and answer.json["message"], answer.json and answer.json["data"]
    failed = "Failed to test the S3 filesystem."
    assert check("storage") == (204, None, None)
    assert check("backups") == (400, failed + " Raw error: \nS3 storage filesystem is not enabled.", {})
    assert check("") == (400, failed, {"filesystem": {"code": "validation_required", "message": "Cannot be blank."}})
    assert check("x")[2]["filesystem"]["code"] == "validation_in_invalid"
    assert docs.post("/api/settings/test/s3", {"filesystem": "storage"}).status == 401
    assert not any(key.startswith("pb_settings_test_") for key in bucket.keys())
    docs.settings(backups={"s3": bucket.settings(bucket="missing")})
    status, message, _ = check("backups")
    assert status == 400 and "failed to upload a test file: [key: pb_settings_test_" in message and "404 NoSuchBucket: " in message and "(RAW: <" in message
    docs.settings(backups={"s3": bucket.settings(endpoint="http://127.0.0.1:1")})
    assert check("backups")[0] == 400
    docs.settings(backups={"s3": bucket.settings()})
    assert check("backups")[0] == 204


def test_storage_changes_with_the_settings(fresh, bucket):
    server = fresh()
    server.docs = server.make("docs", FIELDS)
    local, _, _ = add(server, "local.txt", b"local")
    server.settings(s3=bucket.settings())
    remote, key, _ = add(server, "remote.txt", b"remote")
    assert server.get(remote).body == b"remote" and server.get(local).status == 404 and key in bucket.keys()
    server.restart()
    assert server.get(remote).body == b"remote"
    server.settings(s3={"enabled": False})
    assert server.get(local).body == b"local" and server.get(remote).status == 404


def test_a_storage_that_is_away_fails_requests_only(fresh, bucket):
    server = fresh()
    server.docs = server.make("docs", FIELDS)
    server.settings(s3=bucket.settings())
    url, _, record = add(server, "a.txt", b"x")
    server.settings(s3={"endpoint": "http://127.0.0.1:1"})
    assert server.get(url).status == 404
    assert server.post("/api/collections/docs/records", form={"one": ("a.txt", b"x")}).status == 400
    assert server.db("select count(*) from docs") == [(1,)]
    assert server.delete(f"/api/collections/docs/records/{record['id']}").status == 204
    assert server.get("/api/health").status == 200


def test_orphans_in_the_bucket_are_kept_for_a_day(docs, bucket):
    stray = f"{docs.docs['id']}/gone00000000000/a.txt"
    assert bucket.ask("PUT", f"/{bucket.name}/{stray}", data=b"x").status_code == 200
    assert docs.post("/api/crons/__pbDBOptimize__", token=docs.su).status == 204
    url, _, _ = add(docs, "a.txt", b"x")
    assert stray in bucket.keys() and docs.get(url).status == 200


def test_what_an_interrupted_upload_left_in_the_bucket_is_removed(docs, bucket):
    key = f"{docs.docs['id']}/gone00000000000/big.bin"
    assert bucket.ask("POST", f"/{bucket.name}/{key}?uploads").status_code == 200       # moto says that all uploads began in 2010
    pocketbase.S3Storage(bucket.settings(), "").delete_leftovers(before=0)
    assert key in bucket.unfinished()
    assert docs.post("/api/crons/__pbDBOptimize__", token=docs.su).status == 204
    wait(lambda: key not in bucket.unfinished())
