"""The teacher at other sizes of its input, and on mirrored images: multi-scale inference.

What practitioners do, as Mask2Former's `SemanticSegmentorWithTTA` and MMSegmentation's `aug_test`:
class scores of all passes are averaged at the output's size. A segment has no counterpart in
another pass, so one pass alone makes the outputs that have segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lqn_seg.segmentation.windows import Size

if TYPE_CHECKING:
    from lqn_seg.segmentation.segmenter import Prediction, Segmenter


class OtherSizes:
    """Class scores averaged over sizes, and over the image and its mirror image.

    Args:
        segmenters: the teacher alone, whom images meet in windows of each size.
        flip: whether images are mirrored too.
    """

    def __init__(self, segmenters: Sequence[Segmenter], flip: bool) -> None:
        self.segmenters, self.flip = segmenters, flip

    @property
    def passes(self) -> list[tuple[Segmenter, bool]]:
        """Who predicts, and whether the images are mirrored."""
        return [(each, flip) for each in self.segmenters for flip in (False, True)[: 1 + self.flip]]

    def __call__(self, images: Sequence[Tensor], sizes: Sequence[Size]) -> list[Prediction]:
        """One prediction an image (3, height, width) uint8, of (height, width) `sizes`."""
        total = self._predict(*self.passes[0], images, sizes)
        for each, flip in self.passes[1:]:
            for sofar, more in zip(total, self._predict(each, flip, images, sizes)):
                sofar.output["sem_seg"] += more.output["sem_seg"]
                for key, value in more.stats.items():
                    sofar.stats[key] += value
        for prediction in total:
            if "sem_seg" in prediction.output:
                prediction.output["sem_seg"] /= len(self.passes)
            for key in ("token_cos", "error_over_variance"):
                prediction.stats[key] /= len(self.passes)
        return total

    @staticmethod
    def _predict(
        segmenter: Segmenter, flip: bool, images: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[Prediction]:
        turned = [image.flip(-1) for image in images] if flip else images
        (name,) = segmenter.methods
        predictions = [by_name[name] for by_name in segmenter(turned, sizes)]
        for prediction in predictions if flip else ():
            prediction.output["sem_seg"] = prediction.output["sem_seg"].flip(-1)
        return predictions
