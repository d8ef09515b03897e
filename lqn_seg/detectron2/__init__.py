"""The Detectron2 plugin, and the only place that imports Detectron2. The import registers nothing:

import lqn_seg.detectron2 as lqn
lqn.register(); lqn.add_lqn_config(cfg)                  # cfg = detectron2.config.get_cfg()
cfg.merge_from_file("configs/demo_lqn.yaml")
"""

import importlib


def setup_environment() -> None:
    """What $DETECTRON2_ENV_MODULE=lqn_seg.detectron2 runs, in every process that has Detectron2:
    any script has our models, data sets and MODEL.LQN. (First in this file: Detectron2 may ask for
    it while this file imports it.)"""
    importlib.import_module("lqn_seg.detectron2.config").add_to_defaults()


try:
    # Something inside it: an unrelated folder called `detectron2` can be imported as well.
    import detectron2.config  # noqa: F401
except ImportError as error:
    raise ImportError(
        "lqn_seg.detectron2 needs Detectron2, which is not installed here; install it against the "
        "installed torch by `pip install --no-build-isolation "
        "git+https://github.com/facebookresearch/detectron2`, or use the native engine, which "
        f"gives the same numbers without it ({error})"
    ) from error

from lqn_seg.detectron2.backbone import TeacherBackbone  # noqa: E402
from lqn_seg.detectron2.config import add_lqn_config  # noqa: E402
from lqn_seg.detectron2.evaluation import LQNEvaluator, LQNTrainer, evaluate  # noqa: E402
from lqn_seg.detectron2.meta_arch import EomtMetaArch, LQNTTTMetaArch, register  # noqa: E402

__all__ = ["EomtMetaArch", "LQNEvaluator", "LQNTTTMetaArch", "LQNTrainer", "TeacherBackbone"]
__all__ += ["add_lqn_config", "evaluate", "register"]
