"""The numbers behind `engine.training.training_images.augment`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AugmentationConfig:
    """How a training image is varied; the defaults flip it and change nothing else.

    crop: resize at random and crop a square of the teacher's size; without it every image must
        have that size already.
    scale: (least, most) of the random resize; at 1 the image's short side is the crop's side,
        which is how ``INFERENCE: windows`` shows it to the teacher.
    flip: probability of mirroring left and right, 0 .. 1.
    brightness, contrast, saturation: x draws a factor from [max(1 - x, 0), 1 + x]; 0 is off.
    hue: x draws a shift from [-x, x] turns of the colour circle, at most 0.5; 0 is off.
    each: probability of each of the four; below 1, they come as in EoMT's training: brightness
        first, then contrast before or after saturation and hue.
    """

    crop: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    each: float = 1.0
