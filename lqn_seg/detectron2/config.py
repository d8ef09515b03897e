"""``MODEL.LQN`` in Detectron2's configuration, which makes its own data sets known."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.config.defaults import _C

from lqn_seg.config import nodes
from lqn_seg.data.catalog import register_entries
from lqn_seg.detectron2.meta_arch import register


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
        register()
        if "MODEL" in self:  # not yet where it is copied, in a process that knows them
            register_entries(self.MODEL.LQN.DATASETS)


def add_lqn_config(cfg: CfgNode) -> None:
    """`lqn_seg.config.nodes.add_lqn_config`; ``cfg`` becomes an `LQNCfgNode`."""
    nodes.add_lqn_config(cfg)
    object.__setattr__(cfg, "__class__", LQNCfgNode)


def add_to_defaults() -> None:
    """Register everything, and let every `get_cfg()` from now on have ``MODEL.LQN``."""
    register()
    add_lqn_config(_C)
