"""From adapted tokens to image features in CLIP's joint space. (Config keys call it the pooling.)

- ``cls``: the CLS token alone. Its answer is zero-shot's wherever the mixing weight is 0.
- ``mean``: the mean direction of all patches of the last layer, the paper's.
- ``mean_cls``: likewise with the CLS token among them.
- ``text``: likewise without, each patch weighted by how sure it is of some class.
- ``reentry``: the patches of ``reentry_layer`` go back into the teacher, which runs on from there,
  and its own CLS token is taken.

Shapes: B images, H x W grid, D features, E joint features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lqn_seg.adapt.baselines.zero_shot import mean_direction
from lqn_seg.adapt.classification_methods import Adaptation
from lqn_seg.adapt.journey import Adapted, Method
from lqn_seg.adapt.lqn import LQN
from lqn_seg.adapt.registry import make_method
from lqn_seg.errors import InputError
from lqn_seg.teachers.clip import ClipTeacher


def method_for(adaptation: Adaptation, teacher: ClipTeacher) -> Method:
    """What adapts the tokens that a pooling asks for.

    Raises:
        InputError: the layer to re-enter at is not one of the teacher's, or of the student's fit.
    """
    layer = adaptation.reentry_layer or teacher.num_layers // 2
    if not 1 <= layer <= teacher.num_layers:
        raise InputError(
            f"CLASSIFICATION.REENTRY_LAYER must be in 1..{teacher.num_layers}, not {layer}"
        )
    layer = layer if adaptation.pooling == "reentry" else teacher.num_layers
    method = make_method(adaptation.recipe, teacher, adaptation.knows_cls, layer)
    fitted = method.fitter.layers if isinstance(method, LQN) else (layer,)
    if adaptation.pooling == "reentry" and layer not in fitted:
        raise InputError(
            f"the pooling reentry asks for layer {layer}, which the student is not fitted to: "
            f"MODEL.LQN.FIT.LAYERS ({layer},) or CLASSIFICATION.REENTRY_LAYER"
        )
    return method


def image_features(
    adapted: Adapted, pooling: str, layer: int, teacher: ClipTeacher, text: Tensor
) -> Tensor:
    """(B, E) unit features of adapted images.

    Args:
        layer: whose tokens they are.
        text: (C, E) class features.
    """
    if pooling == "reentry":
        last, context = teacher.resume(layer, adapted.tokens, adapted.seen.context)
        return teacher.pooled(last, context)
    if pooling == "cls":
        return teacher.project(adapted.context[:, 0])
    tokens = adapted.tokens.flatten(1, 2)  # (B, H * W, D)
    if pooling == "mean_cls":
        tokens = torch.cat([adapted.context, tokens], 1)
    projected = teacher.project(tokens)
    if pooling != "text":
        return mean_direction(projected)
    surest = (teacher.logit_scale * projected @ text.T).softmax(-1).amax(-1)
    return mean_direction(projected, surest)
