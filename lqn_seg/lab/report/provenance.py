"""What is written down beside numbers, and how JSON takes them."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lqn_seg import __version__
from lqn_seg.engine import launch
from lqn_seg.engine.store import write_atomically


def environment(threads: int) -> dict[str, str]:
    """What a number depends on beside the configuration: versions, commit and machine."""
    return {
        "lqn_seg": __version__,
        "commit": commit() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": sys.modules["transformers"].__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processes": str(launch.size()),
        "threads": str(threads),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def commit() -> str:
    """The checkout's commit, with "-dirty" where files differ from it; empty outside of one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return ""
    options = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    command = ["git", "-C", str(root), *options]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def json_numbers(value: Any) -> Any:
    """NaN is no JSON: null says "undefined" to every reader."""
    if isinstance(value, Mapping):
        return {key: json_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_numbers(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any, indent: int | None = 1) -> Path:
    """Write `json_numbers` of a value; an InputError where that is impossible."""
    write_atomically(path, json.dumps(json_numbers(value), indent=indent) + "\n")
    return path
