"""Methods side by side on some images, with what a reader must know of them above."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lqn_seg.engine.studio import Source, Studio
from lqn_seg.lab.report.pictures import Seen, comparison_panel
from lqn_seg.segmentation.segmenter import Prediction
from lqn_seg.visualization.panels import captioned


def compare(
    studio: Studio,
    images: Sequence[Source],
    predictions: Sequence[dict[str, Prediction]],
    unlike: Sequence[bool],
) -> NDArray[np.uint8]:
    """A panel, a row per image: ground truth if there is any, and the predictions by method.

    With ground truth the scores are written, and how far each is from the first method's; without,
    which classes the teacher knows. `unlike`: the teacher was calibrated on nothing like the image.
    """
    rows = [
        Seen(
            source.pixels,
            by_method,
            studio.truth(source),
            partial(studio.score, source),
            source.condition.words if source.record or len(images) > 1 else "",
        )
        for source, by_method in zip(images, predictions)
    ]
    drawn = comparison_panel(rows, studio.categories, studio.metric)
    is_users = any(source.record is None for source in images)
    warnings = [source.unlike for source, is_far in zip(images, unlike) if is_far]
    return captioned(drawn, [studio.known] if is_users else [], warnings)
