"""Top-1 accuracy as published, for the methods that are not run here and beside those that are.

CLIP ViT-B/16 (OpenAI) on ImageNet, -A, -V2, -R, -Sketch. Other people's figures, with their own
prompts, views and runs: a table marks them as published. Sources: the papers of the methods and
Table 1 of the LQN paper.
"""

from __future__ import annotations

TEACHER = "ViT-B-16"
DATASETS = ("imagenet_val", "imagenet_a", "imagenet_v2", "imagenet_r", "imagenet_sketch")
Row = tuple[float, float, float, float, float]

# Run here too.
RUN: dict[str, Row] = {
    "zero-shot": (66.73, 47.87, 60.86, 73.98, 46.09),
    "ensemble": (68.3, 49.8, 61.8, 77.6, 48.2),
    "apm": (68.1, 52.1, 67.2, 76.5, 49.3),
    "zero": (69.31, 59.61, 64.16, 77.22, 48.40),
    "mta": (69.29, 57.41, 63.61, 76.92, 48.58),
    "tps": (70.1, 60.0, 64.7, 80.2, 49.9),  # with descriptors from a language model
    "gs-bias": (70.5, 56.6, 64.6, 80.4, 50.3),
    "tpt": (68.98, 54.77, 63.45, 77.06, 47.94),
    "tda": (69.5, 60.1, 64.6, 80.2, 50.5),
    "lqn-src": (69.4, 54.5, 68.3, 78.0, 51.0),
    "lqn": (70.2, 58.6, 68.5, 80.4, 50.4),
}
# Not run: they need a diffusion model, labels or test labels.
NOT_RUN: dict[str, Row] = {
    "DiffTPT": (70.3, 55.68, 65.1, 75.0, 46.8),
    "DMN-ZS (history, test labels)": (72.2, 58.2, 65.1, 78.5, 53.2),
    "DPE (history)": (71.9, 59.6, 65.4, 80.4, 52.2),
    "MTA + TPT": (70.0, 58.0, 64.2, 78.3, 49.6),
    "CoOp (labels)": (71.5, 49.7, 64.2, 75.2, 47.9),
    "CoCoOp (labels)": (71.0, 50.6, 64.0, 76.1, 48.7),
    "TPT + CoOp (labels)": (73.6, 57.9, 66.8, 77.2, 49.2),
    "TPT + CoCoOp (labels)": (71.0, 58.4, 64.8, 78.6, 48.4),
    "MTA + CoOp (labels)": (73.9, 59.2, 66.9, 78.2, 49.9),
}


def published(dataset: str) -> dict[str, float]:
    """Method -> published accuracy on a data set; empty where there is none."""
    if dataset not in DATASETS:
        return {}
    column = DATASETS.index(dataset)
    return {name: row[column] for name, row in {**RUN, **NOT_RUN}.items()}
