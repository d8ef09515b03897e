"""Evaluation on Detectron2's engine: its loader and its loop, our evaluators. It runs one method
per call, on clean images, and cannot resume; the native one can."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from lqn_seg.config.nodes import merge_cfg
from lqn_seg.data.catalog import get_dataset
from lqn_seg.detectron2.config import add_lqn_config
from lqn_seg.detectron2.meta_arch import LQNTTTMetaArch, register
from lqn_seg.engine import launch
from lqn_seg.engine.interruption import is_launched
from lqn_seg.engine.plugin import NOTHING_TO_TRAIN, ImageScores, method_name, whole_batches
from lqn_seg.errors import InputError

Metrics = dict[str, dict[str, float]]


class LQNEvaluator(ImageScores, DatasetEvaluator):
    """Our evaluators for the outputs that MODEL.MASK_FORMER.TEST turns on, as one of Detectron2's.

    ``images`` holds each image's statistics and hash; after :meth:`evaluate`, on the main process,
    those of all processes. ``prefix`` is of the tasks' names: ``DatasetEvaluators`` refuses one
    twice, and Detectron2's may stand beside this.
    """

    def evaluate(self) -> Metrics | None:
        """Metrics 0 .. 100 by ``lqn/<task>``, and means under ``lqn``; None in other processes."""
        comm.synchronize()  # waits as long as it takes; a gather gives up after half an hour
        parts = comm.gather(self.images)
        return self.summarize(parts) if comm.is_main_process() else None


class LQNTrainer(DefaultTrainer):
    """DefaultTrainer for EomtMetaArch and for stock architectures on the frozen backbone. It tests
    with our evaluators, on the data sets of our catalog."""

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: Any) -> Any:
        if isinstance(model, LQNTTTMetaArch):
            raise InputError(NOTHING_TO_TRAIN)
        return super().build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> LQNEvaluator:
        return LQNEvaluator(cfg, dataset_name, prefix="")

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        records = get_dataset(dataset_name).records()[: cfg.MODEL.LQN.EVAL.MAX_IMAGES or None]
        # As many images as students side by side; a single image would be fitted BATCH times.
        batch, processes = cfg.MODEL.LQN.BATCH, (comm.get_rank(), comm.get_world_size())
        return build_detection_test_loader(
            records,
            mapper=DatasetMapper(cfg, False),
            sampler=whole_batches(len(records), batch, *processes),
            batch_size=batch,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )


def evaluate(
    config_file: str, overrides: Sequence[str] = (), device: str = ""
) -> tuple[Metrics, dict[int | str, str]]:
    """Evaluate the one method of a configuration on Detectron2's engine, and print its metrics.
    Every process that Detectron2's launcher or `launch.joined` has joined takes its part. Returns
    metrics by task, and each image's mask hash by its id: of all on the main process."""
    if launch.size() > 1 and is_launched():
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    register()
    cfg = get_cfg()
    add_lqn_config(cfg)
    merge_cfg(cfg, config_file, overrides, device)
    if len(cfg.DATASETS.TEST) != 1:
        raise InputError(f"{config_file}: DATASETS.TEST must name exactly one data set")
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank())
    log = logging.getLogger("detectron2.lqn_seg")  # below Detectron2's, whose handlers print it
    log.info("method %s on clean images; this engine cannot resume", method_name(cfg))
    evaluator = LQNTrainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])
    results = LQNTrainer.test(cfg, build_model(cfg), evaluator)
    if comm.is_main_process() and len(evaluator.images) < len(evaluator.records):
        log.info("SUBSET: %d of %d images", len(evaluator.images), len(evaluator.records))
    return results, {key: line["mask_hash"] for key, line in evaluator.images.items()}
