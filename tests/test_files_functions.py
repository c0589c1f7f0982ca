"""Content sniffing, stored names, the local storage, served headers: the tables were read off PocketBase 0.40."""

import io
import json
import os
import re
import threading
import zipfile

from unit import pocketbase as files
import pytest


def zipped(*names, mimetype=""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        if mimetype:
            archive.writestr("mimetype", mimetype)
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def box(brand):
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0isom"


def ole(class_id):
    head = bytearray(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 2040)
    head[26], head[48], head[1104:1120] = 3, 1, bytes.fromhex(class_id)
    return bytes(head)


TEXT = "text/plain; charset=utf-8"
OFFICE = "application/vnd.openxmlformats-officedocument."
KINDS = [
    (b"\x89PNG\r\n\x1a\n", "image/png", ".png"),
    (b"\xff\xd8\xff\xe0", "image/jpeg", ".jpg"),
    (b"GIF89a", "image/gif", ".gif"),
    (b"GIF8", TEXT, ".txt"),
    (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp", ".webp"),
    (b"BM" + b"\0" * 12 + b"\x28\0\0\0", "image/bmp", ".bmp"),
    (b"BM hello", TEXT, ".txt"),
    (b"II*\0", "image/tiff", ".tiff"),
    (b"\0\0\1\0\1", "image/x-icon", ".ico"),
    (box(b"avif"), "image/avif", ".avif"),
    (box(b"heic"), "image/heic", ".heic"),
    (box(b"mif1"), "image/heif", ".heif"),
    (box(b"isom"), "video/mp4", ".mp4"),
    (box(b"M4A "), "audio/x-m4a", ".m4a"),
    (box(b"qt  "), "video/quicktime", ".mov"),
    (b"\x1aE\xdf\xa3\x9f\x42\x82\x84webm", "video/webm", ".webm"),
    (b"\x1aE\xdf\xa3\x9f\x42\x82\x88matroska", "video/matroska", ".mkv"),
    (b"OggS" + b"\0" * 24 + b"\x01vorbis", "audio/ogg", ".oga"),
    (b"OggS" + b"\0" * 24 + b"\x80theora", "video/ogg", ".ogv"),
    (b"ID3\3\0\0\0\0\0\x21" + b"\0" * 9, "audio/mpeg", ".mp3"),
    (b"\xff\xfb\x90\x64", "audio/mpeg", ".mp3"),
    (b"\xff\xf1\x50\x80", "audio/aac", ".aac"),
    (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav", ".wav"),
    (b"%PDF-1.4\n", "application/pdf", ".pdf"),
    (b"\n\n%PDF-1.4\n", "application/pdf", ".pdf"),
    (zipped("a.txt"), "application/zip", ".zip"),
    (zipped("[Content_Types].xml", "word/document.xml"), OFFICE + "wordprocessingml.document", ".docx"),
    (zipped("xl/workbook.xml"), OFFICE + "spreadsheetml.sheet", ".xlsx"),
    (zipped("docProps/a", "ppt/p.xml"), OFFICE + "presentationml.presentation", ".pptx"),
    (zipped(mimetype="application/epub+zip"), "application/epub+zip", ".epub"),
    (zipped("META-INF/MANIFEST.MF"), "application/java-archive", ".jar"),
    (zipped(mimetype="application/vnd.oasis.opendocument.text"), "application/vnd.oasis.opendocument.text", ".odt"),
    (ole("0609020000000000c000000000000046"), "application/msword", ".doc"),
    (ole("0" * 32), "application/x-ole-storage", ""),
    (b"\x1f\x8b", "application/gzip", ".gz"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed", ".7z"),
    (b"\0asm\1", "application/wasm", ".wasm"),
    (b"MZ hello", "application/vnd.microsoft.portable-executable", ".exe"),
    (b"\x7fELF\2\1\1" + b"\0" * 9 + b"\3\0", "application/x-sharedlib", ".so"),
    (b"\0\1\0\0\0\x0c\0\x80\0\3\0\x40cmap", "font/ttf", ".ttf"),
    (b"OTTO\0\x0c\0\x80\0\3\0\x40CFF ", "font/otf", ".otf"),
    (b"\0\1\0\0", "application/octet-stream", ""),
    (b"wOF2\0", "font/woff2", ".woff2"),
    (b"SQLite format 3\0", "application/vnd.sqlite3", ".sqlite"),
    (b"\xca\xfe\xba\xbe\0\0\0\x34", "application/x-java-applet", ".class"),
    (b"\xca\xfe\xba\xbe\0\0\0\2", "application/x-mach-binary", ".macho"),
    (b"x\x9c\xcb\x48", "application/zlib", ""),
    (b"x^2", TEXT, ".txt"),
    (b"", "text/plain", ".txt"),
    (b"hello\n", TEXT, ".txt"),
    (b"a\0b", "application/octet-stream", ""),
    (b"a\x1b[0m", TEXT, ".txt"),
    (b"a\bb", "application/octet-stream", ""),
    (b"h\xe9llo", "text/plain; charset=iso-8859-1", ".txt"),
    (b"a\x85b", "text/plain; charset=windows-1252", ".txt"),
    (b"\x93q\x94 a", "text/plain", ".txt"),
    (b"abc\xe2\x82", TEXT, ".txt"),
    (b"a" * 2000 + b"\xe9 b", TEXT, ".txt"),
    (b"a" * 4096 + b"\0", TEXT, ".txt"),
    (b"a" * 4095 + b"\0", "application/octet-stream", ""),
    ("é".encode("utf-16"), "text/plain; charset=utf-16le", ".txt"),
    (b"\xfe\xff\0a", "text/plain; charset=utf-16be", ".txt"),
    ("a".encode("utf-32"), "text/plain; charset=utf-32le", ".txt"),
    (b"\xef\xbb\xbfa", TEXT, ".txt"),
    (b" \n<HTML>", "text/html; charset=utf-8", ".html"),
    (b"<htmlx>", TEXT, ".txt"),
    (b"<!-- c -->", "text/html; charset=utf-8", ".html"),
    (b"<p", TEXT, ".txt"),
    (b"<html><meta charset='Utf-8'>", "text/html; charset=Utf-8", ".html"),
    (b"<svg></svg>", "image/svg+xml", ".svg"),
    (b" <svg>", TEXT, ".txt"),
    (b'<?xml version="1.0"?><svg/>', "image/svg+xml", ".svg"),
    (b'<?xml version="1.0"?><a/>', "text/xml; charset=utf-8", ".xml"),
    (b"<?xml?><a/>", TEXT, ".txt"),
    (b'<?xml version="1.0" encoding="ISO-8859-1"?><a/>', "text/xml; charset=ISO-8859-1", ".xml"),
    (b'<?xml version="1.0"?><rss>', "application/rss+xml", ".rss"),
    (b'{"a":1}', "application/json", ".json"),
    (b"[]", "application/json", ".json"),
    (b'"a"', TEXT, ".txt"),
    (b"5", TEXT, ".txt"),
    (b'{"a":1} x', TEXT, ".txt"),
    (b'{"a":1', TEXT, ".txt"),
    (b'{"a":"' + b"x" * 5000, "application/json", ".json"),
    (b'{"a":x' + b"x" * 5000, TEXT, ".txt"),
    (b'{"a":1}\n{"b":2}\n', "application/x-ndjson", ".ndjson"),
    (b'{"a":1}\n{"b"\n', "application/x-ndjson", ".ndjson"),
    (b"1\n2\n", TEXT, ".txt"),
    (b'{"x":1,"type":"Point"}', "application/geo+json", ".geojson"),
    (b'{"x":{"type":"Point"}}', "application/json", ".json"),
    (b'{"asset":{"version":"2.0"}}', "model/gltf+json", ".gltf"),
    (b'{"log":{"entries":[]}}', "application/json", ".har"),
    (b'{"log":1}', "application/json", ".json"),
    (b"a,b\n1,2\n", "text/csv", ".csv"),
    (b"a,b\n", TEXT, ".txt"),
    (b"a,b\n1,2,3\n", TEXT, ".txt"),
    (b"a\tb\n1\t2\n", "text/tab-separated-values", ".tsv"),
    (b"#!/bin/sh\n", "text/x-shellscript", ".sh"),
    (b"#!/usr/bin/env python3\n", "text/x-python", ".py"),
    (b"#!/opt/bin/python\n", TEXT, ".txt"),
    (b"#!/usr/bin/env node\n", "text/javascript", ".js"),
    (b"<?php echo", "text/x-php", ".php"),
    (b"{\\rtf1", "text/rtf", ".rtf"),
    (b"body { color: red }", TEXT, ".txt"),
    (b"BEGIN:VCARD\r\nVERSION:3.0\r\n", "text/vcard", ".vcf"),
    (b"WEBVTT\n", "text/vtt", ".vtt"),
    (b"Subject: x\nFrom: a@b\n\nx", "message/rfc822", ".eml"),
    (bytes(range(256)), "application/octet-stream", ""),
    (b"[" * 5000, "application/json", ".json"),
    (b"\xff" * 50, "text/plain; charset=iso-8859-1", ".txt"),
    (b"j" * 1019 + b"%PDF-1.4", "application/pdf", ".pdf"),
    (b"j" * 1020 + b"%PDF-1.4", TEXT, ".txt"),
    (b"<html>%PDF-1.4", "application/pdf", ".pdf"),
    (b"RIFF\0\0\0\0AVI LIST", "application/octet-stream", ""),
    (b"RIFF\0\0\0\0AVI LIST\0", "video/x-msvideo", ".avi"),
    (box(b"3gp7"), "video/3gpp", ".3gp"),
    (box(b"3gp8"), "video/mp4", ".mp4"),
    (box(b"M4A_"), "video/mp4", ".mp4"),
    (box(b"dvr1"), "video/vnd.dvb.file", ".dvb"),
    (b"\1\0\0\0ftypisom", "application/octet-stream", ""),
    (b"\0\0\0\x14ftypiso", "application/octet-stream", ""),
    (b"\0\0\0\x08moov", "application/octet-stream", ""),
    (b"\0\0\0\x08moov\0", "video/quicktime", ".mov"),
    (b"\0\0\0\x10wide" + b"\0" * 9, "application/octet-stream", ""),
    (b"\0\0\0\x08wide" + b"\0" * 9, "video/quicktime", ".mov"),
    (b"\x53\x2a\x4d\x18", "application/zstd", ".zst"),
    (b"\x27\xb5\x2f\xfd", "application/zstd", ".zst"),
    (b"xar!", "application/x-xar", ".xar"),
    (b"\xd9\xd9\xf7\xa0", "application/cbor", ".cbor"),
    (b"\xffWPC\x10\0\0\0\1\x0a", "application/vnd.wordperfect", ".wpd"),
    (b"Cr24\2\0\0\0\1\0\0\0\2\0\0\0abcPK\3\4", "application/x-chrome-extension", ".crx"),
    (b"Cr24\2\0\0\0\1\0\0\0\2\0\0\0abcd", "application/octet-stream", ""),
    (zipped("assets/x", "classes.dex"), "application/vnd.android.package-archive", ".apk"),
    (zipped("META-INF/MANIFEST.MF"), "application/java-archive", ".jar"),
    (zipped("META-INF/x"), "application/zip", ".zip"),
    (zipped("a", "doc.kml"), "application/vnd.google-earth.kmz", ".kmz"),
    (zipped("a", "word/document.xml"), "application/zip", ".zip"),
    (zipped("docProps/app.xml", "a", "xl/x"), "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", ".xlsx"),
    (b"a,b\n1,2\n" * 500 + b"z", "text/csv", ".csv"),
    (b"a,b\n1,2\n" * 300 + b"z", TEXT, ".txt"),
    (b"<!-- x", "text/html; charset=utf-8", ".html"),
    (b"<!--x", TEXT, ".txt"),
    (b"<?php", TEXT, ".txt"),
    (b'["a\n"]', "application/json", ".json"),
    (b"[NaN]", TEXT, ".txt"),
    (b'{"bomFormat":"CycloneDX"}', "application/vnd.cyclonedx+json", ".json"),
    (b"#!/bin/node\n", "text/javascript", ".js"),
    (b"#!/usr/local/bin/node\n", TEXT, ".txt"),
    (b"#!/usr/bin/bash\n", TEXT, ".txt"),
    (b"#!/usr/local/bin/dash\n", "text/x-shellscript", ".sh"),
    (b"#!/usr/local/bin/perl\n", TEXT, ".txt"),
    (b"#!/usr/bin/tcl\n", "text/x-tcl", ".tcl"),
    (b"abc\xff", TEXT, ".txt"),
    (b"abc\xe9def", "text/plain; charset=iso-8859-1", ".txt"),
    (b'<?xml version="1.0"?><X3D xmlns:xsd="http://www.w3.org/2001/XMLSchema-instance">', "model/x3d+xml", ".x3d"),
    (b'<?xml version="1.0"?><gpx xmlns="http://www.topografix.com/GPX/1/0">', "text/xml; charset=utf-8", ".xml"),
    (b'<?xml version="1.0"?><kml xmlns="http://earth.google.com/kml/2.1">', "application/vnd.google-earth.kml+xml", ".kml"),
]


@pytest.mark.parametrize(("head", "content_type", "extension"), KINDS, ids=lambda value: repr(value)[:24])
def test_content_tells_the_type(head, content_type, extension):
    assert (files.sniff_type(head), files.sniffed_extension(head)) == (content_type, extension)


def test_extension_for_ignores_parameters():
    kinds = ("image/png", TEXT, "text/html; charset=utf-8", "application/zip", "application/octet-stream", "x/y")
    assert [files.extension_for(kind) for kind in kinds] == [".png", ".txt", ".html", ".zip", "", ""]


RANDOM = "[a-z0-9]{10}"
NAMES = [
    ("My File (1).TXT", f"my_file_1_{RANDOM}.TXT"),
    ("x.tar.gz", f"x{RANDOM}_{RANDOM}.tar.gz"),
    ("a.b.c.d.ext", f"a_b_c_{RANDOM}.d.ext"),
    ("..ünïcodé äNAME$%.tar.gz", f"n_cod_name_{RANDOM}.tar.gz"),
    ("weird (1) [x].p+d=f", rf"weird_1_x_{RANDOM}\.p\+d=f"),
    (".htaccess", f"{RANDOM}_{RANDOM}.htaccess"),
    ("t.png", f"t{RANDOM}_{RANDOM}.png"),
    ("a/b/c.png", f"c{RANDOM}_{RANDOM}.png"),
    ("a\\b\\c.png", f"a_b_c_{RANDOM}.png"),
    ("noext", f"noext_{RANDOM}.txt"),
    ("trail.", f"trail_{RANDOM}.txt"),
    ("...", f"{RANDOM}_{RANDOM}.txt"),
    ("a..b", f"a{RANDOM}_{RANDOM}.b"),
    ("x.é", f"x{RANDOM}_{RANDOM}.txt"),
    ("", f"{RANDOM}_{RANDOM}.txt"),
    ("x.tar.é", f"x{RANDOM}_{RANDOM}.tar"),
    ("x." + "e" * 30, f"x{RANDOM}_{RANDOM}.e{{20}}"),
    ("L" * 320 + ".txt", f"l{{100}}_{RANDOM}.txt"),
    ("a" * 99 + "Bc.txt", f"a{{99}}__{RANDOM}.txt"),
    ("../../etc/passwd", f"passwd_{RANDOM}.txt"),
    ("x.abcdefghij.klmnopqrstuv", f"x{RANDOM}_{RANDOM}.defghij.klmnopqrstuv"),
]


@pytest.mark.parametrize(("name", "shape"), NAMES, ids=lambda value: value[:20])
def test_stored_names(name, shape):
    assert re.fullmatch(shape, files.stored_name(name, b"hello"))


def test_long_upload_names_keep_their_last_300_bytes():
    assert files.clean_upload_name("x" + "é" * 200 + ".txt") == "é" * 148 + ".txt"


@pytest.fixture
def storage(tmp_path):
    return files.LocalStorage(tmp_path / "storage", sync=False)


def test_a_saved_file_is_there_with_its_sidecar(storage):
    storage.save("col/rec/a.png", b"hello", "image/png", 'T"ést.png')
    found = storage.stat("col/rec/a.png")
    assert (found.size, open(found.path, "rb").read(), storage.content_type("col/rec/a.png")) == (5, b"hello", "image/png")
    assert open(found.path + ".attrs").read() == (
        '{"user.cache_control":"","user.content_disposition":"","user.content_encoding":"","user.content_language":"","user.content_type":"image/png",'
        '"user.metadata":{"original-filename":"T\\"ést.png"},"md5":"XUFAKrxLKna5cZ2REBfFkg=="}'
    )
    assert sorted(os.listdir(os.path.dirname(found.path))) == ["a.png", "a.png.attrs"]


def test_a_durable_save_reads_streams_and_has_no_metadata_without_a_name(tmp_path):
    durable = files.LocalStorage(tmp_path)
    durable.save("a", io.BytesIO(b"x" * 3_000_000), "text/plain", size=3_000_000)
    assert durable.stat("a").size == 3_000_000 and durable.attributes("a")["user.metadata"] == {}


def test_a_failed_save_leaves_nothing(storage):
    class Broken:
        def read(self, size):
            raise OSError("connection lost")

    with pytest.raises(OSError):
        storage.save("col/rec/a.png", Broken(), "image/png")
    with pytest.raises(OSError):
        storage.save("col/rec/a.png", b"short", "image/png", size=9)
    assert os.listdir(storage.root) == []


def test_a_failed_replacement_keeps_the_old_file(storage):
    storage.save("col/rec/a", b"old", "text/old")
    with pytest.raises(OSError):
        storage.save("col/rec/a", b"new", "text/new", size=9)
    assert storage.open("col/rec/a").read() == b"old" and storage.content_type("col/rec/a") == "text/old"


def test_missing_and_broken_sidecars_mean_octet_stream(storage):
    storage.save("a", b"x", "image/png")
    for text in ("", "[]", "{", '{"user.content_type":""}'):
        with open(storage.path("a") + ".attrs", "w") as sidecar:
            sidecar.write(text)
        assert storage.content_type("a") == "application/octet-stream"
    os.unlink(storage.path("a") + ".attrs")
    assert storage.content_type("a") == "application/octet-stream"


@pytest.mark.parametrize("key", ["", "..", ".", "/etc/passwd", "a/..", "a/./b", "./a", "a.attrs"])
def test_keys_that_would_leave_the_root_do_not_exist(storage, key):
    for action in (storage.stat, storage.open, storage.delete):
        with pytest.raises(FileNotFoundError):
            action(key)
    with pytest.raises(FileNotFoundError):
        storage.save(key, b"x", "text/plain")


def test_keys_are_escaped_as_on_existing_disks(storage):
    for key, path in (
        ("a/../b", "a/..__0x2f__b"),
        ("a//b", "a/__0x2f__b"),
        ("a/", "a__0x2f__"),
        ("a\n\0b", "a__0xa____0x0__b"),
        ("../../x", "..__0x2f__..__0x2f__x"),
    ):
        assert storage.path(key) == os.path.join(storage.root, path)
        storage.save(key, b"x", "text/plain")
        assert [item.key for item in storage.list()] == [key]
        storage.delete(key)


def test_a_directory_is_no_file(storage):
    storage.save("col/rec/a", b"x", "text/plain")
    assert not storage.exists("col/rec") and not storage.exists("col/rec/a/b") and storage.exists("col/rec/a")


def test_deleting_prunes_empty_parents_but_not_the_root(storage):
    storage.save("col/rec/a", b"x", "text/plain")
    storage.save("col/two/b", b"x", "text/plain")
    storage.delete("col/rec/a")
    storage.delete("col/rec/a")
    assert os.listdir(os.path.join(storage.root, "col")) == ["two"]
    storage.delete("col/two/b")
    assert os.listdir(storage.root) == []


def test_listing_and_deleting_by_prefix(storage):
    for key in ("col/rec/a.png", "col/rec/thumbs_a.png/100x100_a.png", "col/rec2/b", "other/c"):
        storage.save(key, b"x", "text/plain")
    assert sorted(item.key for item in storage.list("col/rec")) == ["col/rec/a.png", "col/rec/thumbs_a.png/100x100_a.png", "col/rec2/b"]
    assert [item.key for item in storage.list("nowhere/")] == []
    storage.delete_prefix("col/rec/thumbs_")
    assert {item.key for item in storage.list()} == {"col/rec/a.png", "col/rec2/b", "other/c"}
    storage.delete_prefix("col/")
    assert [item.key for item in storage.list()] == ["other/c"]
    storage.delete_prefix("")
    assert os.listdir(storage.root) == []


def test_saving_while_another_thread_prunes_the_folder(storage):
    def churn(name):
        try:
            for _ in range(200):
                storage.save(f"col/rec/{name}", b"x", "text/plain")
                storage.delete(f"col/rec/{name}")
        except OSError as error:
            failed.append(error)

    failed = []
    threads = [threading.Thread(target=churn, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and os.listdir(storage.root) == []


def test_served_headers():
    headers = files.served_headers("image/png", "a.png")
    assert headers == {
        "Content-Type": "image/png",
        "Content-Disposition": 'inline; filename="a.png"',
        "Cache-Control": "max-age=2592000, stale-while-revalidate=86400",
        "Content-Security-Policy": "default-src 'none'; media-src 'self'; style-src 'unsafe-inline'; sandbox",
    }
    assert files.served_headers("image/png", "a.png", download=True)["Content-Disposition"] == 'attachment; filename="a.png"'


@pytest.mark.parametrize(
    ("stored", "name", "served", "disposition"),
    [
        ("text/html; charset=utf-8", "a.html", "text/html; charset=utf-8", "attachment"),
        ("image/svg+xml", "a.svg", "image/svg+xml", "attachment"),
        (TEXT, "a.css", "text/css", "attachment"),
        (TEXT, "a.mjs", "text/javascript", "attachment"),
        (TEXT, "a.CSS", TEXT, "attachment"),
        ("application/zip", "a.docx", OFFICE + "wordprocessingml.document", "attachment"),
        ("image/png", "a.svg", "image/svg+xml", "inline"),
        ("application/pdf", "a.pdf", "application/pdf", "inline"),
        ("video/mp4", "a", "video/mp4", "inline"),
        ("image/avif", "a.avif", "image/avif", "attachment"),
    ],
)
def test_served_types(stored, name, served, disposition):
    headers = files.served_headers(stored, name)
    assert (headers["Content-Type"], headers["Content-Disposition"]) == (served, f'{disposition}; filename="{name}"')


def test_the_sidecar_is_json_others_can_read(storage):
    storage.save("a", b"", "text/plain", "é" * 200)
    assert json.load(open(storage.path("a") + ".attrs"))["user.metadata"]["original-filename"] == "é" * 127
