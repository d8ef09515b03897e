"""What the nodes of the configuration hold: dataclasses that say keys, defaults, types and
ranges."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from lqn_seg.adapt.classification_methods import PROMPTS, VIEWS
from lqn_seg.data.augmentation import AugmentationConfig
from lqn_seg.data.corruptions import parse_corruption
from lqn_seg.errors import InputError, nearest

Section = TypeVar("Section")
Amount = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]

# MODEL.LQN.TRAIN.AUGMENTATION: how training images vary.
AUGMENTATIONS = {
    "flip": AugmentationConfig(),
    "crop": AugmentationConfig(crop=True),
    # At scale 1 the short side fills the crop, as INFERENCE windows shows it at evaluation.
    # The colours vary strongly: CamVid's reported drive is at dusk.
    "photographs": AugmentationConfig(
        crop=True, scale=(0.7, 1.6), brightness=0.6, contrast=0.5, saturation=0.5, hue=0.05
    ),
    # EoMT's own, for Cityscapes and ADE20K.
    "eomt": AugmentationConfig(
        crop=True,
        scale=(0.5, 2.0),
        brightness=32 / 255,
        contrast=0.5,
        saturation=0.5,
        hue=18 / 360,
        each=0.5,
    ),
    # The same without colours: what comes in other light then is a shift.
    "scale": AugmentationConfig(crop=True, scale=(0.5, 2.0)),
}


@dataclass(frozen=True)
class TeacherConfig:
    """``MODEL.LQN.TEACHER``: directories, files or hub ids."""

    name: str = "eomt"  # or clip; or dinov2, with a linear head or for features alone
    weights: str = ""
    config: str = ""  # what describes a model without weights
    base: str = ""  # what delta weights (EoMT on DINOv3) are the difference to
    image_size: tuple[int, ...] = ()  # (height, width) in place of the checkpoint's
    precision: str = "float32"  # of its matrix products: as FIT.PRECISION, float16 or int8
    compile: bool = False  # its blocks by torch.compile, for a GPU (a CPU gains nothing)


@dataclass(frozen=True)
class TrainConfig:
    """``MODEL.LQN.TRAIN``, beside Detectron2's ``SOLVER``."""

    # What the training starts from; empty: random. For an EoMT the DINOv2 of its ViT, in timm's,
    # transformers' or Meta's layout; for a CLIP a whole one, as open_clip's folder, file or tag.
    backbone: str = ""
    layer_decay: Annotated[float, Meta(gt=0, le=1)] = 0.8  # of the rate, per block from the last
    backbone_warmup: Amount = 1000  # steps, after WARMUP_ITERS in which the backbone's rate is 0
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.0  # decay of the averaged weights that are kept
    augmentation: str = "flip"  # of `AUGMENTATIONS`
    pixel_loss_weight: Annotated[float, Meta(ge=0)] = 0.0  # cross-entropy on the last tokens

    def __post_init__(self) -> None:
        nearest(self.augmentation, tuple(AUGMENTATIONS), "MODEL.LQN.TRAIN.AUGMENTATION")


@dataclass(frozen=True)
class EvalConfig:
    """``MODEL.LQN.EVAL``."""

    corruptions: tuple[str, ...] = ()  # evaluated after the clean images
    severity: Annotated[int, Meta(ge=1, le=5)] = 3
    max_images: Amount = 0  # the first so many; 0 is all
    # Fraction of the images that may fail, each by name, before the command ends with an error.
    max_failed: Annotated[float, Meta(ge=0, le=1)] = 0.5
    # CPU threads of a process, the same on every machine and for any number of processes: it
    # decides the last bits of a result.
    threads: Count = 1
    panel_images: Amount = 3
    panel_methods: tuple[str, ...] = ()
    bootstrap_samples: Count = 2000

    def __post_init__(self) -> None:
        for name in self.corruptions:
            parse_corruption(name, "corruption in MODEL.LQN.EVAL.CORRUPTIONS")


@dataclass(frozen=True)
class ClassificationConfig:
    """``CLASSIFICATION``."""

    methods: tuple[Any, ...] = ("zero-shot", "lqn")
    prompts: str = "ensemble"
    views: Annotated[int, Meta(ge=1, le=1024)] = VIEWS  # that baselines take, the image included
    student_views: Amount = 0  # that are adapted to; 0 leaves it to the recipe (`usual_views`)
    history: bool = False  # allows methods whose scores depend on the images before (tda)

    def __post_init__(self) -> None:
        nearest(self.prompts, PROMPTS, "CLASSIFICATION.PROMPTS")
        if not self.methods:
            raise InputError("CLASSIFICATION.METHODS names no method")
        if "tda" in self.methods and not self.history:
            raise InputError(
                "tda learns from earlier images, so its scores depend on their order; set "
                "CLASSIFICATION.HISTORY True to run it anyway"
            )


def keys_of(section: type) -> dict[str, Any]:
    return {field.name.upper(): field.default for field in dataclasses.fields(section)}


def convert(node: Mapping[str, Any], section: type[Section], where: str) -> Section:
    """A node, whose name is ``where``, as its dataclass; an `InputError` names the key of a wrong
    value."""
    values = {key.lower(): value for key, value in node.items()}
    try:
        return msgspec.convert(values, section)
    except msgspec.ValidationError as error:
        match = re.fullmatch(r"(.+) - at `\$\.(\w+).*", str(error))
        if not match:  # of the dataclass itself
            raise InputError(str(error)) from error
        reason, key = match.groups()
        name, value = f"{where}.{key.upper()}", values[key]
        if get_origin(hint := get_type_hints(section)[key]) is Literal:
            nearest(str(value), get_args(hint), name)
        raise InputError(f"{name}: {reason[0].lower()}{reason[1:]}, not {value!r}") from error
