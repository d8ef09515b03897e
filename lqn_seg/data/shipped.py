"""What travels with the project: configurations, the demo's teachers and scenes.

An installed package holds `configs/` and `datasets/` in its folder `shipped/`; a checkout has them
at its top, beside the package.
"""

import difflib
from importlib.resources import files
from pathlib import Path

from lqn_seg.errors import InputError


def shipped_root() -> Path:
    """The folder that holds the project's `configs` and `datasets`."""
    package = Path(str(files("lqn_seg")))
    installed = package / "shipped"
    return installed if installed.is_dir() else package.parent


def find_local(path: str) -> str:
    """A relative path as it is, or below `shipped_root` where it exists only there."""
    below = shipped_root() / path
    return str(below) if path and not Path(path).exists() and below.exists() else path


def find_config(name: str, kind: str = "config") -> Path:
    """The YAML file of a configuration: a path as it is, else a shipped one by its name.

    Names may leave out "configs/", "_lqn" and ".yaml": `demo` is `configs/demo_lqn.yaml`, and
    `classification/demo` is `configs/classification/demo.yaml`.

    Args:
        kind: "config", or "study", whose names may leave out "study/" too.

    Raises:
        InputError: there is neither such a file nor a shipped configuration of this name.
    """
    folder = shipped_root() / "configs"
    short = name.removeprefix("configs/")
    stems = [folder / short, folder / "study" / short] if kind == "study" else [folder / short]
    shipped = [Path(f"{stem}{ending}") for stem in stems for ending in ("", ".yaml", "_lqn.yaml")]
    for path in (Path(name), *shipped) if name else ():
        if path.is_file():
            return path
    known = sorted(_short(str(path.relative_to(folder))) for path in folder.glob("**/*.yaml"))
    known += [name.removeprefix("study/") for name in known if kind == "study"]
    near = difflib.get_close_matches(_short(short), known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"there is no {kind} file {name}{hint}")


def _short(name: str) -> str:
    return name.removesuffix(".yaml").removesuffix("_lqn")
