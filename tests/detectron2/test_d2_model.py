"""Registration, configuration and the model under Detectron2's own entry points."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2.engine", reason="Detectron2 is not installed")

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Instances
from detectron2.utils.analysis import FlopCountAnalysis, activation_count_operators
from detectron2.utils.visualizer import Visualizer

import lqn_seg.detectron2 as lqn
from lqn_seg.config.nodes import load_cfg, methods
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.images import read_image
from lqn_seg.engine.build import build_segmenter
from lqn_seg.errors import InputError
from lqn_seg.segmentation.postprocess import mask_hash

NAME = "demo_panoptic_val"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def image(data_root):
    """(96, 96, 3) uint8 RGB of the first scene."""
    return read_image(get_dataset(NAME).records()[0]["file_name"]).copy()


def inputs(image, **size):
    return [{"image": torch.from_numpy(image).permute(2, 0, 1), **size}]


def test_registering_twice_is_fine(cfg):
    lqn.register()
    assert META_ARCH_REGISTRY.get("LQNTTTMetaArch") is lqn.LQNTTTMetaArch
    theirs = MetadataCatalog.get("ade20k_sem_seg_val")
    assert len(theirs.stuff_classes) == 150 and "lqn_seg" not in str(theirs.image_root)


def test_the_records_are_complete(cfg):
    records, ours = DatasetCatalog.get(NAME), get_dataset(NAME)
    assert len(records) == 3
    for record, own in zip(records, ours.records()):
        assert {key: record[key] for key in own} == own
        labels = np.asarray(read_image(record["sem_seg_file_name"]))[..., 0]
        assert (labels == ours.metadata.read_semantic(own)).all()
        things = [s for s in own["segments_info"] if s["isthing"]]
        assert [a["bbox"] for a in record["annotations"]] == [s["bbox"] for s in things]
        assert [a["category_id"] for a in record["annotations"]] == [
            s["category_id"] for s in things
        ]


def test_the_predictor_gives_the_native_masks_from_rgb_and_bgr(cfg, config_file, image):
    native_cfg = load_cfg(str(config_file))
    metadata = get_dataset(NAME).metadata
    native = build_segmenter(native_cfg, metadata.thing_ids, 13, methods(native_cfg))
    expected = native([torch.from_numpy(image).permute(2, 0, 1).contiguous()])[0]["lqn"].output
    assert len(expected["panoptic_seg"][1]) >= 3  # or equality says nothing
    hashes = []
    for channels in ("RGB", "BGR"):
        cfg.INPUT.FORMAT = channels
        output = DefaultPredictor(cfg)(image[:, :, ::-1])  # it is always given BGR
        hashes.append(mask_hash(output))
        assert torch.equal(output["sem_seg"], expected["sem_seg"])
        assert all(type(s["isthing"]) is bool for s in output["panoptic_seg"][1])
    assert hashes == [mask_hash(expected)] * 2
    cfg.MODEL.LQN.METHOD = "teacher"
    assert mask_hash(DefaultPredictor(cfg)(image[:, :, ::-1])) != hashes[0]  # it did adapt


def test_instances_are_detectron2s(cfg, image):
    output = build_model(cfg)(inputs(image, height=48, width=64))[0]
    instances = output["instances"]
    assert isinstance(instances, Instances) and len(instances) > 0
    assert instances.image_size == (48, 64) == tuple(instances.pred_masks.shape[1:])
    assert output["sem_seg"].shape == (13, 48, 64)
    assert output["panoptic_seg"][0].shape == (48, 64)
    for mask, (x0, y0, x1, y1) in zip(instances.pred_masks, instances.pred_boxes.tensor.tolist()):
        rows, columns = (mask.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        if rows:
            expected = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert (x0, y0, x1, y1) == expected


def test_the_visualizer_draws(cfg, image):
    output = build_model(cfg)(inputs(image))[0]
    metadata = MetadataCatalog.get(NAME)
    ids, segments = output["panoptic_seg"]
    drawn = [
        Visualizer(image, metadata).draw_panoptic_seg(ids, segments),
        Visualizer(image, metadata).draw_sem_seg(output["sem_seg"].argmax(0)),
        Visualizer(image, metadata).draw_instance_predictions(output["instances"][:3]),
    ]
    for picture in drawn:
        assert picture.get_image().shape == image.shape
        assert (picture.get_image() != image).mean() > 0.1


def test_inference_mode_is_refused_and_no_grad_is_not(cfg, image):
    model = build_model(cfg)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch\.inference_mode"):
        model(inputs(image))
    with torch.no_grad():
        assert model(inputs(image))[0]["lqn"]["fallback"] == 0


def test_bad_configurations_are_named(cfg):
    def message(*changes):
        changed = cfg.clone()
        changed.merge_from_list(list(changes))
        changed.freeze()  # as train_net.py hands it over
        with pytest.raises(InputError) as caught:
            build_model(changed)
        return str(caught.value)

    assert "MODEL.LQN.TEACHER.WEIGHTS" in message("MODEL.WEIGHTS", "model.pth")
    assert "DATASETS.TEST is empty" in message("DATASETS.TEST", ())
    assert "unknown data set 'demo_panoptic_vla'" in message(
        "DATASETS.TEST", ("demo_panoptic_vla",)
    )
    assert "13 classes" in message("DATASETS.TEST", ("ade20k_sem_seg_val",))
    assert "the best one here is MODEL.DEVICE" in message("MODEL.DEVICE", "auto")
    if not torch.cuda.is_available():
        assert "this machine has no device cuda" in message("MODEL.DEVICE", "cuda")


def their_maskformer2_config(cfg):
    """The like of Mask2Former's own function, which replaces the node."""
    test = {"SEMANTIC_ON": True, "INSTANCE_ON": False, "PANOPTIC_ON": False}
    test |= {"OBJECT_MASK_THRESHOLD": 0.0, "OVERLAP_THRESHOLD": 0.0}
    cfg.MODEL.MASK_FORMER = CfgNode({"NHEADS": 8, "TEST": CfgNode(test)})


@pytest.mark.parametrize("ours_first", [True, False])
def test_mask2formers_configuration_may_come_before_and_after(cfg, config_file, image, ours_first):
    both = get_cfg()
    order = [lqn.add_lqn_config, their_maskformer2_config]
    for add in order if ours_first else reversed(order):
        add(both)
    both.merge_from_file(str(config_file))
    assert both.MODEL.MASK_FORMER.NHEADS == 8
    assert mask_hash(build_model(both)(inputs(image))[0]) == mask_hash(
        build_model(cfg)(inputs(image))[0]
    )


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_teacher_is_counted_and_a_fit_says_that_it_is_not(cfg, image):
    cfg.MODEL.LQN.METHOD = "teacher"
    model = build_model(cfg)
    counted = FlopCountAnalysis(model, inputs(image)).by_operator()
    # Six linear layers a block: 24 x 72 and 24 x 24 of attention, twice 24 x 96 of the MLP.
    tokens = 2 * (16 + 2) + (16 + 2 + 12)  # two layers without the 12 queries and one with them
    blocks = tokens * (24 * 72 + 24 * 24 + 2 * 24 * 96)
    assert counted["linear"] >= blocks
    assert activation_count_operators(model, inputs(image))["linear"] > 0
    cfg.MODEL.LQN.METHOD = "lqn"
    with pytest.raises(InputError, match=r"METHOD lqn cannot be traced"):
        FlopCountAnalysis(build_model(cfg), inputs(image)).total()


def run_python(code, **environment):
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    return said.stdout


STOCK = """
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
cfg = get_cfg()
cfg.merge_from_file({config!r})
print(type(build_model(cfg)).__name__, len(DatasetCatalog.get("demo_panoptic_val")))
"""


@pytest.mark.parametrize("before", ["", "import lqn_seg.detectron2\n"])
def test_detectron2s_own_hook_serves_scripts_that_know_nothing_of_us(config_file, before):
    script = before + STOCK.format(config=str(config_file))
    said = run_python(script, DETECTRON2_ENV_MODULE="lqn_seg.detectron2")
    assert said.split()[-2:] == ["LQNTTTMetaArch", "3"]


RECEIVE = """
import pickle
cfg = pickle.load(open({path!r}, "rb"))
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.data import DatasetCatalog
print("LQNTTTMetaArch" in META_ARCH_REGISTRY, "sent_along" in DatasetCatalog, cfg.is_frozen())
"""


def test_a_process_that_is_sent_a_configuration_knows_what_is_in_it(cfg, tmp_path):
    entry = dict(NAME="sent_along", IMAGE_DIR="a", LABEL_DIR="b", CLASSES=["on", "off"])
    cfg.merge_from_list(["MODEL.LQN.DATASETS", [entry]])
    cfg.freeze()
    (tmp_path / "cfg").write_bytes(pickle.dumps(cfg))
    assert run_python(RECEIVE.format(path=str(tmp_path / "cfg"))) == "True True True\n"
    copy = cfg.clone()
    copy.defrost()
    assert type(copy) is type(cfg) and copy == cfg
