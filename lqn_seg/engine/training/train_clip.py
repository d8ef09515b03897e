"""Train a CLIP on labelled images, captioned by open_clip's templates: from scratch, or from one.

A step takes a batch of images and one caption for every class among them, of a template drawn anew.
The loss is CLIP's symmetric one, with all pairs of a class as positives (UniCL). The result is a
folder that open_clip's own ``create_model("local-dir:...")`` reads.
"""

import json
import math
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from safetensors.torch import save_file
from torch import Tensor

from lqn_seg.classification.prompts import templates
from lqn_seg.core.precision import mixed_precision
from lqn_seg.data.catalog import get_dataset
from lqn_seg.data.labelled_images import read_labelled_image
from lqn_seg.data.shipped import find_local
from lqn_seg.engine.store import say
from lqn_seg.engine.training.loop import Trainer
from lqn_seg.engine.training.optimizers import NEW, PartOf, optimizer_from_backbone
from lqn_seg.engine.usable import usable_records
from lqn_seg.errors import InputError
from lqn_seg.segmentation.windows import resize_image
from lqn_seg.teachers.base import Preprocessing, Size, normalise
from lqn_seg.teachers.clip import FOLDER_CONFIG, image_tower, read_clip
from lqn_seg.teachers.eomt import load_eomt
from lqn_seg.teachers.files import read_json
from lqn_seg.teachers.preprocessing import clip_values

MAX_LOGIT_SCALE = 100.0
WEIGHTS = "open_clip_model.safetensors"
ABOVE_TOWERS = {"proj", "text_projection", "logit_scale", "logit_bias"}
LAST_NORMS = {"ln_post", "ln_final"}


class ClipTrainer(Trainer):
    """Trains a CLIP. It starts from the one in ``MODEL.LQN.TRAIN.BACKBONE`` (an open_clip folder,
    or a weight file or tag of the architecture in ``MODEL.LQN.TEACHER.CONFIG``), or is a new one of
    the shape in ``MODEL.LQN.TEACHER.CONFIG`` (JSON in open_clip's format), whose image tower starts
    from the first layers of the EoMT in ``MODEL.WEIGHTS``, if one is named."""

    kind = "a CLIP"

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.device = torch.device(cfg.MODEL.DEVICE)
        torch.manual_seed(self.seed)
        self.is_new = not cfg.MODEL.LQN.TRAIN.BACKBONE
        self.start = cfg.MODEL.LQN.TRAIN.BACKBONE or cfg.MODEL.WEIGHTS or "a random start"
        make = new_clip if self.is_new else pretrained_clip
        self.model, self.model_cfg, tokenize, self.preprocessing = make(cfg)
        dataset = get_dataset(cfg.DATASETS.TRAIN[0])
        self.captions = [  # by template, (classes, T)
            tokenize([template(name) for name in dataset.metadata.class_names]).to(self.device)
            for template in templates("train")
        ]
        self.size = self.model.visual.image_size
        self.shape = json.dumps(self.model_cfg)
        self.images, self.labels = _load(usable_records(dataset), self.size)
        if self.is_new:
            self._centre()
            groups = _groups(self.model, self.solver)
            optimizer: Any = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        else:
            optimizer = optimizer_from_backbone(self.model, part_of(self.model), cfg)
        self.set_up(self.model, [optimizer])

    @property
    def image_count(self) -> int:
        return len(self.labels)

    def export(self, learner: Any, folder: Path) -> None:
        """Write a folder that open_clip reads."""
        if self.is_new:
            self._forget_unseen_words(learner)
        save_clip(folder, learner, self.model_cfg, self.preprocessing)

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images (B, 3, s, s), captions (K, T), which of the K each image belongs to (B,), and the
        K classes."""
        rows = torch.randint(len(self.labels), (self.solver.IMS_PER_BATCH,), generator=self.random)
        images = augment(self.images[rows].to(self.device).float() / 255, self.random)
        present, place = self.labels[rows].unique(return_inverse=True)
        drawn = torch.randint(len(self.captions), (len(present),), generator=self.random)
        pairs = zip(drawn.tolist(), present.tolist())
        captions = torch.stack([self.captions[template][label] for template, label in pairs])
        return self._input(images), captions, place.to(self.device), present

    def loss(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Of one batch."""
        images, captions, place, present = batch
        with mixed_precision(self.device, self.solver.AMP.ENABLED):
            image_features = self.model.encode_image(images, normalize=True)
            text_features = self.model.encode_text(captions, normalize=True)
        scale = self.model.logit_scale.exp()
        logits = scale * image_features.float() @ text_features.float().T
        positives = F.one_hot(place, len(present)).float()
        to_image = (positives / positives.sum(0) * logits.log_softmax(0)).sum(0).mean()
        return (F.cross_entropy(logits, place) - to_image) / 2

    def step(self) -> float:
        loss = super().step()
        self.model.logit_scale.data.clamp_(0, math.log(MAX_LOGIT_SCALE))
        return loss

    @torch.no_grad()
    def _centre(self, images: int = 256) -> None:
        """Let ``ln_post`` start with features of mean 0 and deviation 1 over images: else all point
        the same way at first, and what tells them apart is learned late."""
        visual = self.model.visual.eval()
        proj, visual.proj = visual.proj, None
        sample = torch.arange(0, len(self.labels), max(1, len(self.labels) // images))[:images]
        pixels = self._input(self.images[sample].to(self.device).float() / 255)
        deviation, mean = torch.std_mean(visual(pixels), 0)
        visual.proj = proj
        visual.ln_post.weight /= deviation
        visual.ln_post.bias.sub_(mean).div_(deviation)

    def _input(self, images: Tensor) -> Tensor:
        return normalise(images, self.preprocessing.mean, self.preprocessing.std)

    @torch.no_grad()
    def _forget_unseen_words(self, model: Any) -> None:
        """Zero the embedding of tokens that no caption had: noise still, and zeros pack well."""
        seen = torch.cat(self.captions).unique()
        weight = model.token_embedding.weight
        kept = weight[seen].clone()
        weight.zero_()[seen] = kept


def new_clip(cfg: CfgNode) -> tuple[Any, dict[str, Any], Any, Preprocessing]:
    """An untrained model, its shape in open_clip's words, its tokenizer and its input."""
    model_cfg = read_model_cfg(find_local(cfg.MODEL.LQN.TEACHER.CONFIG))
    model = open_clip.model.CLIP(**model_cfg).to(cfg.MODEL.DEVICE)
    weights = cfg.MODEL.WEIGHTS
    input_ = start_from_eomt(model, find_local(weights)) if weights else Preprocessing()
    length = model_cfg["text_cfg"]["context_length"]
    return model, model_cfg, open_clip.SimpleTokenizer(context_length=length), input_


def pretrained_clip(cfg: CfgNode) -> tuple[Any, dict[str, Any], Any, Preprocessing]:
    """The same of the CLIP in ``MODEL.LQN.TRAIN.BACKBONE``."""
    key, name = "MODEL.LQN.TRAIN.BACKBONE", cfg.MODEL.LQN.TEACHER.CONFIG
    for other, is_set in (
        ("MODEL.WEIGHTS", bool(cfg.MODEL.WEIGHTS)),
        ("SOLVER.BACKBONE_MULTIPLIER", cfg.SOLVER.BACKBONE_MULTIPLIER != 1),
    ):
        if is_set:
            raise InputError(
                f"{other} is for a CLIP from scratch; do not set it together with {key}"
            )
    weights = find_local(cfg.MODEL.LQN.TRAIN.BACKBONE)
    model, tokenizer, source = read_clip(weights, name, cfg.MODEL.DEVICE, key)
    values = clip_values(getattr(image_tower(model), "preprocess_cfg", {}), source)
    config = Path(weights) / FOLDER_CONFIG
    model_cfg = (
        read_json(config, key)["model_cfg"] if not name else open_clip.get_model_config(name)
    )
    return model, model_cfg, tokenizer, Preprocessing(values["mean"], values["std"])


def part_of(model: Any) -> PartOf:
    """The parts of a CLIP's parameters: each tower's embeddings (which count as its first block),
    blocks and last norm. The projections and the scale, above both towers, count as new."""
    text = getattr(model, "text", model)
    depths = {"image": model.visual.transformer.layers, "text": text.transformer.layers}

    def part(name: str) -> tuple[str, int]:
        words = name.split(".")
        if not ABOVE_TOWERS.isdisjoint(words):
            return NEW, 0
        tower = "image" if words[0] == "visual" else "text"
        if "resblocks" in words:
            block = int(words[words.index("resblocks") + 1])
            return f"{tower} block {block}", depths[tower] - 1 - block
        if not LAST_NORMS.isdisjoint(words):
            return f"{tower} norm", 0
        return f"{tower} embeddings", depths[tower] - 1

    return part


@torch.no_grad()
def start_from_eomt(model: Any, weights: str) -> Preprocessing:
    """Copy an EoMT's patch embedding and first layers into a CLIP's image tower; returns its input.
    Of a larger grid the positions in the middle are taken; register tokens are left out."""
    eomt, visual = load_eomt(weights), model.visual
    embeddings, layers = eomt.model.embeddings, visual.transformer.layers
    rows, columns = visual.grid_size
    top, left = (eomt.grid[0] - rows) // 2, (eomt.grid[1] - columns) // 2
    projection = embeddings.patch_embeddings.projection
    fits = (
        projection.weight.shape == visual.conv1.weight.shape
        and min(top, left) >= 0
        and layers <= eomt.num_layers - eomt.num_query_layers
        and isinstance(visual.ln_pre, torch.nn.Identity)
        and not isinstance(visual.transformer.resblocks[0].ls_1, torch.nn.Identity)
    )
    if not fits:
        raise InputError(
            f"MODEL.WEIGHTS: the EoMT {weights} and MODEL.LQN.TEACHER.CONFIG differ in patch size, "
            "width, depth, layer scale (ls_init_value) or no_ln_pre"
        )
    visual.conv1.weight.copy_(projection.weight)
    visual.class_embedding.copy_(embeddings.cls_token.flatten())
    positions = embeddings.position_embeddings.weight.unflatten(0, eomt.grid)
    middle = positions[top : top + rows, left : left + columns].flatten(0, 1)
    visual.positional_embedding[0] = 0
    visual.positional_embedding[1:] = middle + projection.bias
    visual.ln_post.load_state_dict(eomt.model.layernorm.state_dict())
    for block, layer in zip(visual.transformer.resblocks, eomt.model.layers):
        attention = layer.attention
        three = (attention.q_proj, attention.k_proj, attention.v_proj)
        block.attn.in_proj_weight.copy_(torch.cat([p.weight for p in three]))
        block.attn.in_proj_bias.copy_(torch.cat([p.bias for p in three]))
        for target, start in (
            (block.attn.out_proj, attention.out_proj),
            (block.ln_1, layer.norm1),
            (block.ln_2, layer.norm2),
            (block.mlp.c_fc, layer.mlp.fc1),
            (block.mlp.c_proj, layer.mlp.fc2),
        ):
            target.load_state_dict(start.state_dict())
        block.ls_1.gamma.copy_(layer.layer_scale1.lambda1)
        block.ls_2.gamma.copy_(layer.layer_scale2.lambda1)
    return eomt.preprocessing


def augment(images: Tensor, random: torch.Generator) -> Tensor:
    """(B, 3, s, s) mirrored at random, and cropped to 60-100% of their side."""
    count = len(images)
    uniform = torch.rand(4, count, generator=random)
    side = 0.6 + 0.4 * uniform[0]
    mirror = torch.where(uniform[1] < 0.5, -1.0, 1.0)
    shift = (1 - side) * (2 * uniform[2:] - 1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side * mirror, side
    theta[:, 0, 2], theta[:, 1, 2] = shift[0], shift[1]
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _load(records: list[dict[str, Any]], size: Size) -> tuple[Tensor, Tensor]:
    """Images (N, 3, *size) uint8 and labels (N,) in memory; what cannot be read is named."""
    images = torch.empty(len(records), 3, *size, dtype=torch.uint8)
    labels: list[int] = []
    for record in records:
        try:
            pixels = torch.from_numpy(read_labelled_image(record)).movedim(2, 0)
        except InputError as error:
            say(f"left out: {error}")
            continue
        images[len(labels)] = resize_image(pixels, size, "bicubic")
        labels.append(record["label"])
    if not labels:
        raise InputError("none of the training images can be read")
    return images[: len(labels)], torch.tensor(labels)


def _groups(model: torch.nn.Module, solver: CfgNode) -> list[dict[str, Any]]:
    """Parameters with their rate and decay; no decay on what is no matrix. The image tower's take
    ``BACKBONE_MULTIPLIER`` of the rate: at the full one, what they have been taught is lost."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        tower = name.startswith("visual.") and name != "visual.proj"
        rate = solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if tower else 1.0)
        decay = solver.WEIGHT_DECAY if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def save_clip(
    folder: Path,
    model: Any,
    model_cfg: dict[str, Any],
    preprocessing: Preprocessing | None = None,
) -> None:
    """Write a folder that open_clip reads: half-precision weights, and the model's shape."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().half().contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    pixels = preprocessing or Preprocessing()
    height, width = model.visual.image_size
    size = height if height == width else [height, width]
    preprocess = {"size": size, "mean": pixels.mean, "std": pixels.std}
    content = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / FOLDER_CONFIG).write_text(json.dumps(content, indent=1) + "\n")


def read_model_cfg(path: str) -> dict[str, Any]:
    """An open_clip model configuration from a JSON file; an `InputError` where it lacks a part."""
    if not Path(path).is_file():
        raise InputError(f"MODEL.LQN.TEACHER.CONFIG: file {path or '(empty)'} does not exist")
    content = read_json(Path(path), "MODEL.LQN.TEACHER.CONFIG")
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in content:
            raise InputError(f"MODEL.LQN.TEACHER.CONFIG: {path} lacks open_clip's key {key!r}")
    return content
