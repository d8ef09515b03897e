"""The built-in data sets of `sets.json`: names, where their files lie, how to get them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from lqn_seg.data.corruptions import CORRUPTIONS
from lqn_seg.data.metadata import Dataset

SETS = json.loads((files("lqn_seg.data") / "sets.json").read_text())
# Of ImageNet-C and CIFAR-10-C: Hendrycks and Dietterich's 15 and their four extra ones.
C_CORRUPTIONS: tuple[str, ...] = (*CORRUPTIONS, *SETS["extra_corruptions"])


@dataclass(frozen=True)
class Source:
    """A built-in data set."""

    file: str  # what must be in a folder of data sets, for this one to be there
    how_to_get: str  # ends the sentence where it is not
    load: Callable[[str, Path], Dataset]  # (the data set's name, folder of data sets)
    variable: str = ""  # of the environment; names a folder that is looked in first


def sources(
    kind: str, loaders: Mapping[str, Callable[[str, str, Path], Dataset]]
) -> dict[str, Source]:
    """The built-in data sets of a kind ("segmentation" or "classification") by name; a loader, by
    pattern of the name, takes the split, the name and the folder of data sets."""
    result = {}
    corrupted = {f"{c}_{severity}": c for c in C_CORRUPTIONS for severity in range(1, 6)}
    for pattern, about in SETS[kind].items():
        splits = corrupted if about["splits"] == "corruptions" else about["splits"]
        for split, part in splits.items():
            name, file, how_to_get = (
                text.replace("<split>", split).replace("<part>", part)
                for text in (pattern, about["file"], about["how_to_get"])
            )
            load = partial(loaders[pattern], split)
            result[name] = Source(file, how_to_get, load, about.get("variable", ""))
    return result
