"""Files from the model hub where there is no network."""

import socket
import time

import huggingface_hub.constants
import pytest

from lqn_seg.teachers import files


@pytest.fixture
def hub(monkeypatch):
    """A model hub at this machine's own address: `listen` decides whether it answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(files, "getproxies", dict)
        files.use_cache_without_network.cache_clear()
        yield server
    files.use_cache_without_network.cache_clear()


def test_a_hub_out_of_reach_is_asked_once(hub):
    before = time.monotonic()
    assert files.find_file("some/repository", ("config.json", "other.json"), "KEY") is None
    assert time.monotonic() - before < 10  # the hub's own client goes on for two minutes
    assert huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_stays_in_use(hub):
    hub.listen()
    files.use_cache_without_network()
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_proxy_stands_for_the_hub(hub, monkeypatch):
    hub.listen()
    monkeypatch.setattr(files, "getproxies", lambda: {"http": "http://127.0.0.1:9"})
    files.use_cache_without_network()
    assert huggingface_hub.constants.HF_HUB_OFFLINE
