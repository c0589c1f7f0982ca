"""Fixtures: real servers, started by tests/kit.py."""
import pytest

import kit
from helpers_mail import Mailbox


def pytest_configure(config):
    config.addinivalue_line("markers", "last: runs after everything else (slow: builds the executables)")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.fixture(scope="module")
def server():
    """A running server with a superuser, shared by the tests of one file."""
    with kit.Server() as running:
        yield running


@pytest.fixture(scope="module")
def mailbox():
    """A mail server that keeps what it receives."""
    running = Mailbox()
    yield running
    running.close()


@pytest.fixture
def fresh():
    """A factory of servers for one test: fresh("--dev", env={...}) starts one; all are stopped afterwards."""
    made = []

    def make(*args, start=True, **options):
        made.append(kit.Server(*args, **options))
        return made[-1].start() if start else made[-1]

    yield make
    for each in made:
        each.close()
