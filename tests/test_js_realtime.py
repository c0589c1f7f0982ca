"""Realtime from JavaScript: the official SDK in node and in Chromium, and a browser's own WebSocket."""
import json
import os
import shutil
import subprocess

import pytest

import helpers_node
import kit
from helpers_beyond import beyond

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_sdk_subscribes_in_node(server):
    helpers_node.install_packages()
    done = helpers_node.run(["node", "--test", "--test-force-exit", "--test-reporter=spec", "realtime.test.mjs"], PB_URL=server.url, NO_COLOR="1")
    assert done.returncode == 0, done.stdout
    assert "fail 0" in done.stdout and "pass 0" not in done.stdout


@beyond
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_sdk_and_native_websocket_work_in_chromium(fresh, tmp_path):
    helpers_node.install_packages()
    public = tmp_path / "public"
    public.mkdir()
    shutil.copy(os.path.join(helpers_node.FOLDER, "node_modules", "pocketbase", "dist", "pocketbase.umd.js"), public)
    shutil.copy(os.path.join(helpers_node.FOLDER, "realtime.html"), public)
    server = fresh("--publicDir", str(public))
    server.make("rt_pages", ["title"])
    server.make("rt_results", ["name", "value"])
    with server.events("rt_results/*") as results:
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0", "--no-first-run",
                   f"--user-data-dir={tmp_path / 'profile'}", f"{server.url}/realtime.html"]
        browser = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            got = [results.next(kit.PATIENCE)[1]["record"]]
            got += [results.next(kit.PATIENCE)[1]["record"]] if got[0]["name"] == "sdk" else []
        finally:
            kit._kill_group(browser)
            browser.wait(kit.PATIENCE)
    assert {record["name"]: json.loads(record["value"]) for record in got} == {
        "sdk": ["create a", "update b", "delete b"],
        "websocket": ["PB_CONNECT", "PB_SUBSCRIBED", "rt_pages/* create c", "PB_PONG", "PB_CONNECT", "missed", 1009]}
