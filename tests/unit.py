"""The module itself, for tests of single functions: imported without gevent's patching, so that the tests' own threads stay threads."""
import os
import sys

from gevent import monkey

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
patch_all, monkey.patch_all = monkey.patch_all, lambda: None
try:
    import pocketbase
finally:
    monkey.patch_all = patch_all

__all__ = ["pocketbase"]
