"""Files from the model hub where there is no network."""

import hashlib
import socket
import time

import huggingface_hub.constants
import pytest

from lqn_seg.errors import InputError
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


def test_a_number_that_no_model_has_is_named(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"vision_cfg": {"layers": 1e300}, "sizes": [3, 4294967296]}')
    with pytest.raises(InputError, match=r"KEY: .*config\.json .*vision_cfg\.layers is 1e\+300"):
        files.read_json(file, "KEY")
    file.write_text('{"vision_cfg": {"layers": 12}, "sizes": [3, 4294967296]}')
    with pytest.raises(InputError, match=r"sizes\.1 is 4\.29497e\+09"):
        files.read_json(file, "KEY")


def test_a_proxy_stands_for_the_hub(hub, monkeypatch):
    hub.listen()
    monkeypatch.setattr(files, "getproxies", lambda: {"http": "http://127.0.0.1:9"})
    files.use_cache_without_network()
    assert huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_checkpoint_is_known_by_its_file(tmp_path):
    """A file, or that in a folder, as transformers and open_clip name it; larger than one read."""
    content = bytes(range(256)) * 5000
    expected = hashlib.sha256(content).hexdigest()[:16]
    for name in ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(content)
        assert files.weight_file(folder) == folder / name
        assert (
            files.checkpoint_hash(folder) == files.checkpoint_hash(str(folder / name)) == expected
        )
    assert files.weight_file(tmp_path) is None
    for nothing in (tmp_path, "", "some/repository"):
        assert files.checkpoint_hash(nothing) == ""
