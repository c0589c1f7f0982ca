"""The mark of promises that go beyond what PocketBase itself keeps."""
import os

import pytest

from kit import COMMAND
from kit import HOME

_own = any(os.path.exists(word) and os.path.realpath(word).startswith(HOME + os.sep) for word in COMMAND)

# Skips a test when POCKETBASE_CMD names a program outside this repository; POCKETBASE_BEYOND=1 runs it all the same.
beyond = pytest.mark.skipif(not _own and not os.environ.get("POCKETBASE_BEYOND"), reason="a promise of this program only")
