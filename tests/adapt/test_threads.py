"""CPU threads are set, given back, and left alone where they are right already."""

from __future__ import annotations

import pytest
import torch

from lqn_seg.adapt.threads import fixed_threads
from lqn_seg.errors import InputError


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), fixed_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_a_block_within_another_of_the_same_count_sets_nothing(monkeypatch):
    calls = []
    before = torch.get_num_threads()
    setter = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: (calls.append(n), setter(n)))
    with fixed_threads(before + 1), fixed_threads(before + 1):
        with fixed_threads(before + 2):
            assert torch.get_num_threads() == before + 2
        assert torch.get_num_threads() == before + 1
    assert calls == [before + 1, before + 2, before + 1, before]


@pytest.mark.parametrize("count", [0, -1, 1.5, None])
def test_a_wrong_count_is_named(count):
    with pytest.raises(InputError, match=r"EVAL\.THREADS must be at least 1"), fixed_threads(count):
        pass
