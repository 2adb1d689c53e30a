"""Fixtures of the black-box tests.

`server` is one server for a whole run of tests, in two kinds (io_uring with one worker, epoll with two); `c` a raw
client on it, with an empty store; `make_server` makes servers with their own folder and options.
KVASIR_TEST_SERVER=redis runs the tests that aren't marked `kvasir` against redis-server, which proves that what
they expect is what Redis does. KVASIR_BINARY names another build, such as one with sanitizers."""

import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import redis  # noqa: E402
from kvasir_server import IS_REDIS, Server  # noqa: E402

TEST_SECONDS_MAX = 90

VARIANTS = {
    "uring-1": ["--io", "uring", "--threads", 1],
    "epoll-2": ["--io", "epoll", "--threads", 2],
    "uring-2": ["--io", "uring", "--threads", 2],
    "redis": [],
}


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="write the transcripts' replies anew (from redis-server only)")


def pytest_configure(config):
    config.addinivalue_line("markers", "kvasir: about what only kvasir has or promises")
    config.addinivalue_line("markers", "sanitize: worth running on sanitizer builds too")


def pytest_collection_modifyitems(config, items):
    if IS_REDIS:
        items[:] = [item for item in items if not item.get_closest_marker("kvasir")]


@pytest.fixture(autouse=True)
def _time_limit():
    """No test may hang the run."""

    def late(*_):
        raise TimeoutError(f"the test took more than {TEST_SECONDS_MAX} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(TEST_SECONDS_MAX)
    yield
    signal.alarm(0)


def _variants(*names):
    return ["redis"] if IS_REDIS else list(names)


def _serve(request):
    server = Server(*VARIANTS[request.param]).start()
    yield server
    alive = server.process.poll() is None
    log = server.log()
    code = server.stop() if alive else server.process.returncode
    server.destroy()
    assert alive, f"the server died during the tests with {code}:\n{log[-6000:]}"
    assert code == 0, f"the server ended with {code}:\n{log[-6000:]}"


@pytest.fixture(scope="session", params=_variants("uring-1", "epoll-2"))
def server(request):
    yield from _serve(request)


@pytest.fixture(scope="session", params=_variants("uring-2", "epoll-2"))
def server2(request):
    """For what needs two workers."""
    yield from _serve(request)


def _empty_client(server):
    assert server.process.poll() is None, f"the server has died:\n{server.log()[-6000:]}"
    with server.client() as client:
        client("FLUSHALL")
        yield client


@pytest.fixture
def c(server):
    yield from _empty_client(server)


@pytest.fixture
def c2(server2):
    yield from _empty_client(server2)


@pytest.fixture
def r(server):
    """redis-py."""
    client = redis.Redis("127.0.0.1", server.port)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def make_server():
    servers = []

    def make(*options, **named):
        servers.append(Server(*options, **named))
        return servers[-1]

    yield make
    for server in servers:
        server.destroy()
