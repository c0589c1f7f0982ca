"""The admin page under /_/, by plain HTTP: what is served and how, and that the page keeps to its Content-Security-Policy."""
import hashlib
import os
import re

import pytest

import kit
from helpers_answers import envelope
from helpers_beyond import beyond

ASSETS = os.path.join(kit.HOME, "assets")
TYPES = {"app.js": "text/javascript; charset=utf-8", "style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}
LARGEST = 25_000    # bytes of all files together, uncompressed: the page shall open at once on a slow line
pytestmark = beyond    # another server has another page


def content(name):
    with open(os.path.join(ASSETS, name), "rb") as file:
        return file.read()


def policy(answer):
    """{directive: sources} of the answer's Content-Security-Policy."""
    return {name: sources for name, *sources in map(str.split, answer.headers["Content-Security-Policy"].split(";"))}


def test_the_page_is_served(server):
    answer = server.get("/_/")
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, "text/html; charset=utf-8", content("index.html"))


@pytest.mark.parametrize("name", TYPES)
def test_its_assets_are_served(server, name):
    answer = server.get(f"/_/{name}")
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, TYPES[name], content(name))


def test_only_files_of_the_page_lie_there():
    assert sorted(os.listdir(ASSETS)) == sorted(["index.html", *TYPES])


def test_without_its_slash_it_redirects(server):
    answer = server.get("/_")
    assert answer.status in (301, 307) and answer.headers["Location"] == "/_/"


@pytest.mark.parametrize("name", ["", *TYPES])
def test_head_is_get_without_its_body(server, name):
    full, head = server.get(f"/_/{name}"), server.head(f"/_/{name}")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(full.body)) and head.headers["Content-Type"] == full.headers["Content-Type"]


@pytest.mark.parametrize("name", ["", *TYPES])
def test_nobody_else_may_run_scripts_in_it_or_frame_it(server, name):
    answer = server.get(f"/_/{name}")
    rules = policy(answer)
    assert rules["default-src"] == ["'self'"] and rules["frame-ancestors"] == ["'none'"]
    assert "'self'" in rules["script-src"] and not {"'unsafe-inline'", "'unsafe-eval'", "*", "https:", "data:"} & set(rules["script-src"])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_assets_are_cached_but_the_page_is_not(server):
    assert "max-age" not in (server.get("/_/").headers["Cache-Control"] or "")
    for name in TYPES:
        assert server.get(f"/_/{name}").headers["Cache-Control"] == "max-age=1209600, stale-while-revalidate=86400"


def test_during_development_nothing_is_cached(fresh):
    server = fresh("--dev")
    for name in ["", *TYPES]:
        assert "max-age" not in (server.get(f"/_/{name}").headers["Cache-Control"] or "")


@pytest.mark.parametrize("name", ["app.js", "style.css"])
def test_an_asset_that_changed_has_another_address(server, name):
    """Browsers keep assets for two weeks, so index.html names them with the start of their SHA-256."""
    address = f"{name}?v={hashlib.sha256(content(name)).hexdigest()[:8]}"
    assert re.findall(rf'"({name}[^"]*)"', server.get("/_/").text) == [address]
    assert server.get(f"/_/{address}").body == content(name)


@pytest.mark.parametrize("name", ["missing.js", "missing/app.js", "%2e%2e/pocketbase.py", "..%2fpocketbase.py", "%2e%2e%2fMakefile"])
def test_what_is_no_asset_is_not_found(server, name):
    answer = server.get(f"/_/{name}")
    assert (answer.status, answer.json) == (404, envelope(404, "File not found."))


def test_the_page_has_no_inline_script(server):
    page = server.get("/_/").text
    scripts = re.findall(r"<script\b([^>]*)>(.*?)</script>", page, re.S | re.I)
    assert len(scripts) == 1 and "src=" in scripts[0][0] and 'type="module"' in scripts[0][0] and not scripts[0][1].strip()
    assert not re.search(r"<[^>]+\son\w+\s*=|javascript:", page, re.I)


def test_every_address_in_the_page_is_relative_and_served(server):
    """A page that lies below a sub-path of a proxy still finds its files, and asks nobody else."""
    addresses = re.findall(r'(?:src|href)="([^"]*)"', server.get("/_/").text)
    assert len(addresses) >= len(TYPES) and all(re.fullmatch(r"[\w.]+(\?v=\w+)?", address) for address in addresses), addresses
    assert [address for address in addresses if server.get(f"/_/{address}").status != 200] == []
    assert not re.search(rb"https?://|url\(|@import", content("style.css") + content("app.js"))


def test_data_never_becomes_html():
    assert not re.search(rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|setHTML|\beval\b|new Function|localStorage", content("app.js"))


def test_every_element_that_the_script_names_exists():
    made = set(re.findall(r'\bid="([\w-]+)"', content("index.html").decode()))
    used = set(re.findall(r'\$\("([\w-]+)"\)', content("app.js").decode()))
    assert used and used <= made, used - made


def test_it_is_small():
    assert sum(len(content(name)) for name in os.listdir(ASSETS)) < LARGEST
