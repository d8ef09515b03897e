"""Golden files: what this tree answers, image by image, so that a later tree can be held to it.

    python tests/golden/make.py            # compare with the stored files, print what differs
    python tests/golden/make.py --write    # store

Masks and tokens are equal to the bit on one machine and one version of torch; a difference
elsewhere is rounding. `compare` therefore counts unequal hashes and prints the largest difference
of the scores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EVAL = "MODEL.LQN.EVAL."
FEW = [EVAL + "MAX_IMAGES", "2", EVAL + "CORRUPTIONS", "('gaussian_noise','fog')"]
PLAIN = [EVAL + "PANEL_IMAGES", "0", EVAL + "BOOTSTRAP_SAMPLES", "20"]
CONTROLS = (
    "('kernel','ridge','untrained','lqn@slim','apm','apm@paper',"
    "'blur','denoise','standardise','flip','larger')"
)
PAPER = [*FEW, "MODEL.LQN.PRESET", "paper", "MODEL.LQN.FIT.LEARNING_RATE", "0.001"]
SEMANTIC = [
    *("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "True", "MODEL.MASK_FORMER.TEST.INSTANCE_ON", "False"),
    *("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False", "MODEL.LQN.INFERENCE", "windows"),
    *("MODEL.LQN.TEACHER.IMAGE_SIZE", "(96,96)"),
]
ONE = ["MODEL.LQN.METHODS", "('lqn',)"]
ABLATION = ["MODEL.LQN.ABLATION"]
SEGMENTATION: dict[str, list[str]] = {
    "demo": [],
    "controls": [*FEW, "MODEL.LQN.METHODS", CONTROLS],
    "views": [*PAPER, *ONE, *ABLATION, "views-2"],
    "segments": [*PAPER, *ONE, *ABLATION, "segments"],
    "entropy": [*PAPER, *ONE, *ABLATION, "entropy"],
    "random_source": [*PAPER, *ONE, *ABLATION, "random-source"],
    "added_positions": [*PAPER, *ONE, *ABLATION, "added-positions"],
    "student_queries": [*PAPER, *ONE, *ABLATION, "student-queries"],
    "bfloat16": [*PAPER, *ONE, "MODEL.LQN.FIT.PRECISION", "bfloat16"],
}
CLASSIFICATION = {
    "classification": [EVAL + "MAX_IMAGES", "8"],
    "poolings": [
        *(EVAL + "MAX_IMAGES", "4", EVAL + "CORRUPTIONS", "('gaussian_noise',)"),
        "CLASSIFICATION.METHODS",
        "('lqn@distill:mean_cls','lqn@paper:text','lqn@paper:reentry','apm:cls')",
    ],
}
FLOPS = {
    "eomt_paper": ["--count"],
    "eomt_512_default": (
        *("--image-size", "512", "--queries", "100", "--labels", "150"),
        *("--windows", "1.83", "--preset", "default"),
    ),
    "clip": ["--clip", "ViT-B-16-quickgelu"],
}


def _run(tool: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "tools" / tool), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def _evaluated(tool: str, config: str, overrides: list[str]) -> dict[str, Any]:
    """Scores by condition and method, and the hash of every image's answer."""
    flags = ["--eval-only"] if tool == "train_net.py" else []
    with tempfile.TemporaryDirectory() as folder:
        _run(tool, *flags, "--config", config, *PLAIN, *overrides, "OUTPUT_DIR", folder)
        answers: dict[str, dict[str, Any]] = {}
        for path in sorted((Path(folder) / "inference").glob("*.jsonl")):
            condition = path.name.rsplit(".", 2)[0]
            for line in path.read_text().splitlines():
                for image in json.loads(line)["images"]:
                    for method, result in image["methods"].items():
                        by_image = answers.setdefault(f"{condition}/{method}", {})
                        by_image[str(image["image_id"])] = _answer(result)
    return answers


def _answer(result: dict[str, Any]) -> dict[str, Any]:
    """What an image's line says of the answer, apart from times."""
    scores = {
        task: f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"
        for task, value in result.items()
        if task in ("panoptic_seg", "segm", "sem_seg")
    }
    kept = {key: result[key] for key in ("mask_hash", "classification") if key in result}
    stats = result.get("lqn", {})
    numbers = ("token_cos", "error_over_variance", "fallback", "damage")
    kept |= {key: round(stats[key], 6) for key in numbers if key in stats}
    return {**kept, "scores": scores} if scores else kept


def _logits() -> dict[str, Any]:
    """The demo's teacher on a drawn image: logits, to five digits."""
    from lqn_seg.teachers.eomt import load_eomt
    from lqn_seg.teachers.eomt_head import EomtHead

    teacher = load_eomt(str(ROOT / "datasets/demo/teacher"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, *teacher.image_size, generator=generator)
    tokens, context = teacher.encode(images)
    masks, classes = EomtHead(teacher.model)(tokens[:, -1], context.last_queries)
    result = {"tokens": tokens, "masks": masks, "classes": classes}
    return {name: _summary(tensor) for name, tensor in result.items()}


def _summary(tensor: torch.Tensor) -> dict[str, Any]:
    flat = tensor.double().flatten()
    some = flat[:: max(1, len(flat) // 16)][:16]
    return {
        "shape": list(tensor.shape),
        "mean": round(flat.mean().item(), 6),
        "rms": round(flat.square().mean().sqrt().item(), 6),
        "some": [round(x, 4) for x in some.tolist()],
    }


def _calibration() -> dict[str, Any]:
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/calibration.safetensors"
        _run(
            "calibrate.py",
            *("--config", "configs/demo_lqn.yaml", "--images", "datasets/demo/val"),
            *("--max", "16", "--output", path),
        )
        tensors = load_file(path)
    return {  # directions have no sign, and those of equal weight are any
        name: _summary(x.abs() if "basis" in name else x)
        for name, x in sorted(tensors.items())
        if not name.endswith((".read", ".write"))
    }


def make(names: list[str]) -> Iterator[tuple[str, Any]]:
    """The golden values of these names; of all by default."""
    makers: dict[str, Any] = {
        "logits": _logits,
        "calibration": _calibration,
        **{
            f"flops_{name}": lambda a=a: _run("analyze_flops.py", *a).splitlines()
            for name, a in FLOPS.items()
        },
        **{
            name: lambda o=o: _evaluated("train_net.py", "configs/demo_lqn.yaml", o)
            for name, o in SEGMENTATION.items()
        },
        "windows": lambda: _evaluated(
            "train_net.py", "configs/demo_lqn.yaml", [*FEW, *SEMANTIC, *ONE]
        ),
        "fit_per_image": lambda: _evaluated(
            "train_net.py",
            "configs/demo_lqn.yaml",
            [*PAPER, *SEMANTIC, *ONE, *ABLATION, "fit-per-image"],
        ),
        **{
            name: lambda o=o: _evaluated("classify.py", "configs/classification/demo.yaml", o)
            for name, o in CLASSIFICATION.items()
        },
    }
    for name in names or makers:
        yield name, makers[name]()


def differences(stored: Any, result: Any, where: str = "") -> list[str]:
    """Where two golden values differ; numbers may by 2e-4 of their size."""
    if isinstance(stored, dict) and isinstance(result, dict):
        keys = [*stored, *(key for key in result if key not in stored)]
        return [
            line
            for key in keys
            for line in differences(stored.get(key), result.get(key), f"{where}/{key}")
        ]
    if isinstance(stored, list) and isinstance(result, list) and len(stored) == len(result):
        pairs = zip(stored, result)
        return [
            line for k, pair in enumerate(pairs) for line in differences(*pair, f"{where}[{k}]")
        ]
    numbers = isinstance(stored, float | int) and isinstance(result, float | int)
    if numbers and abs(stored - result) <= 2e-4 * max(1, abs(stored)):
        return []
    return [] if stored == result else [f"{where}: {stored} -> {result}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="golden values; all by default")
    parser.add_argument("--write", action="store_true", help="store what is found")
    arguments = parser.parse_args()
    bad = 0
    for name, value in make(arguments.names):
        path = HERE / f"{name}.json"
        if arguments.write:
            path.write_text(json.dumps(value, indent=None, separators=(",", ":")) + "\n")
            print(f"wrote {path}", flush=True)
            continue
        lines = differences(json.loads(path.read_text()), json.loads(json.dumps(value)))
        bad += len(lines)
        print(f"{name}: {len(lines)} differences")
        print("".join(f"  {line}\n" for line in lines[:8]), end="", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
