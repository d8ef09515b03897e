"""``MODEL.LQN`` in Detectron2's configuration, which makes its own data sets known."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.config.defaults import _C

from lqn_seg.config import nodes as config
from lqn_seg.data.catalog import register_entries
from lqn_seg.errors import InputError


class LQNCfgNode(CfgNode):
    """A configuration that makes the data sets under its MODEL.LQN.DATASETS known as it merges."""

    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        super().merge_from_other_cfg(cfg_other)  # from a file, this is its last step
        register_entries(self.MODEL.LQN.DATASETS)

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        super().merge_from_list(cfg_list)
        register_entries(self.MODEL.LQN.DATASETS)

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        """The nodes below are plain ones, and yacs wants those that are merged to be the same."""
        return CfgNode._decode_cfg_value(value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A process that is sent a configuration starts with empty registries."""
        self.__dict__.update(state)
        register_all()
        if "MODEL" in self:  # not yet where it is copied, in a process that knows them
            register_entries(self.MODEL.LQN.DATASETS)


def add_lqn_config(cfg: CfgNode) -> None:
    """`lqn_seg.config.nodes.add_lqn_config` for Detectron2: the same keys and defaults.

    ``cfg`` becomes an `LQNCfgNode`: its own data sets are known from the merge on.
    """
    config.add_lqn_config(cfg)
    object.__setattr__(cfg, "__class__", LQNCfgNode)


def add_to_defaults() -> None:
    """Register everything, and let every `get_cfg()` from now on have ``MODEL.LQN``."""
    register_all()
    add_lqn_config(_C)


def register_all() -> None:
    from lqn_seg.detectron2.meta_arch import register  # which reads configurations

    register()


def check_cfg(cfg: CfgNode) -> None:
    """What every model of ours wants of a configuration, however it was put together.

    Raises:
        InputError: MODEL.LQN.DATASETS describes no data sets, or Detectron2 cannot put a model on
            MODEL.DEVICE; it knows no ``auto``.
    """
    register_entries(cfg.MODEL.LQN.DATASETS)
    device = config.resolve_device(cfg.MODEL.DEVICE)
    if device != cfg.MODEL.DEVICE:
        raise InputError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE}: Detectron2 wants a device by its name, and the best "
            f"one here is MODEL.DEVICE {device}"
        )
