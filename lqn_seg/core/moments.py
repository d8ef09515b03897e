"""Means and variances over positions. `torch.var_mean` over another axis than the last takes 13
times as long on a CPU, because it goes through them one by one (Welford's algorithm)."""

from torch import Tensor


def moments(
    values: Tensor, dim: int | tuple[int, ...], keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and variance (divided by the number of values) over axes, in two passes: first the mean,
    then the mean square of what is left."""
    mean = values.mean(dim, keepdim=True)
    variance = (values - mean).square_().mean(dim, keepdim=keepdim)
    return (mean if keepdim else mean.view_as(variance)), variance
