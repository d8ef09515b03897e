"""Readers of labelled images on small trees in each data set's own layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data import catalog
from lqn_seg.data.catalog import get_dataset, register_image_folder
from lqn_seg.data.classification_sets import CIFAR10_CLASSES, COOP
from lqn_seg.data.labelled_images import (
    class_folders,
    load_image_folder,
    open_array,
    read_labelled_image,
)
from lqn_seg.data.sources import C_CORRUPTIONS, SETS
from lqn_seg.errors import InputError


def draw(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (value, 0, 0)).save(path)
    return path


def test_any_folder_of_class_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "_registered", {})
    for k, name in enumerate(("red_fox/b.png", "red_fox/a.jpg", "dog/c.PNG", "dog/notes.txt")):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image")
        else:
            draw(tmp_path / name, 10 * k)
    register_image_folder("mine", tmp_path)
    assert "mine" in catalog.dataset_names(labelled=True)
    assert "mine" not in catalog.dataset_names(labelled=False)
    assert not {"imagenet_val", "pets_test"} & {*catalog.dataset_names(labelled=False)}
    dataset = get_dataset("mine")
    assert dataset.metadata.class_names == ("dog", "red fox")
    records = dataset.records()
    assert [(r["image_id"], r["label"]) for r in records] == [
        ("dog/c.PNG", 0),
        ("red_fox/a.jpg", 1),
        ("red_fox/b.png", 1),
    ]
    assert read_labelled_image(records[2]).shape == (3, 4, 3)


def test_portions_of_a_class_do_not_overlap(tmp_path):
    for k in range(10):
        draw(tmp_path / "cat" / f"{k}.png")
    parts = [
        {r["image_id"] for r in load_image_folder("x", tmp_path, portion=portion).records()}
        for portion in ((0, 0.8), (0.8, 0.9), (0.9, 1))
    ]
    assert [len(part) for part in parts] == [8, 1, 1]
    assert len(set.union(*parts)) == 10


def test_imagenet_labels_follow_from_the_wordnet_ids(tmp_path):
    draw(tmp_path / "imagenet/images/val/n01443537/x.JPEG".replace("JPEG", "png"))
    (record,) = get_dataset("imagenet_val", tmp_path).records()
    dataset = get_dataset("imagenet_val", tmp_path)
    assert record["label"] == 1 and dataset.metadata.class_names[1] == "goldfish"
    assert dataset.metadata.num_classes == 1000
    shared, missing = dataset.listed().notes
    assert "one name for several classes" in shared
    assert "class folders that are not there: n01440764, " in missing and "996 more" in missing


def test_imagenet_v2_folders_are_labels_and_not_strings(tmp_path):
    root = tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val"
    for folder in ("2", "10", "999"):
        draw(root / folder / "x.png")
    labels = [r["label"] for r in get_dataset("imagenet_v2", tmp_path).records()]
    assert labels == [2, 10, 999]


@pytest.mark.parametrize("name, folder", [("a", "adversarial"), ("r", "rendition")])
def test_imagenet_a_and_r_are_scored_over_their_200_classes(tmp_path, name, folder):
    wnids = list(class_folders(f"imagenet_{name}"))
    assert len(wnids) == 200 and wnids == sorted(wnids)
    draw(tmp_path / f"imagenet-{folder}" / f"imagenet-{name}" / wnids[7] / "x.png")
    dataset = get_dataset(f"imagenet_{name}", tmp_path)
    assert dataset.metadata.num_classes == 200
    assert dataset.records()[0]["label"] == 7
    all_names = class_folders("imagenet")
    assert dataset.metadata.class_names[7] == all_names[wnids[7]]


def test_imagenet_c_has_a_set_for_each_corruption_and_severity(tmp_path):
    draw(tmp_path / "imagenet-c/fog/3/n01440764/x.png")
    (record,) = get_dataset("imagenet_c_fog_3", tmp_path).records()
    assert record["label"] == 0 and "/fog/3/" in record["file_name"]
    assert len(C_CORRUPTIONS) == 19


@pytest.fixture
def cifar(tmp_path) -> Path:
    """The five severities, each image filled with its own number."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    images = np.lib.format.open_memmap(
        folder / "fog.npy", "w+", dtype=np.uint8, shape=(50000, 32, 32, 3)
    )
    for severity in range(5):
        images[10000 * severity] = severity + 1
    np.save(folder / "labels.npy", np.tile(np.arange(10000) % 10, 5))
    return tmp_path


def test_cifar10_c_rows_of_a_severity(cifar):
    records = get_dataset("cifar10_c_fog_4", cifar).records()
    assert len(records) == 10000 and records[13]["label"] == 3
    assert records[0]["image_id"] == 0 and (read_labelled_image(records[0]) == 4).all()
    assert get_dataset("cifar10_c_fog_4", cifar).metadata.class_names == CIFAR10_CLASSES


def test_cifar10_c_says_what_is_wrong(cifar):
    with pytest.raises(InputError, match=r"CIFAR-10-C/contrast\.npy"):
        get_dataset("cifar10_c_contrast_1", cifar)
    np.save(cifar / "CIFAR-10-C" / "snow.npy", np.zeros((5, 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match=r"snow\.npy has the shape \(5, 32, 32, 3\)"):
        get_dataset("cifar10_c_snow_1", cifar).records()
    (cifar / "CIFAR-10-C" / "frost.npy").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"frost\.npy is damaged"):
        get_dataset("cifar10_c_frost_1", cifar).records()
    with pytest.raises(InputError, match="does not exist"):
        open_array(str(cifar / "nowhere.npy"))


def coop(root: Path, key: str, rows: list) -> None:
    (root / SETS["classification"]["<split>_test"]["splits"][key]).mkdir(parents=True)
    content = {"train": rows, "val": [], "test": rows[:2]}
    (root / COOP[key].split_file).write_text(json.dumps(content))


def test_coop_test_splits_and_readable_names(tmp_path):
    coop(tmp_path, "eurosat", [["f/b.jpg", 1, "Big_Forest"], ["a.jpg", 0, "AnnualCrop"]])
    dataset = get_dataset("eurosat_test", tmp_path)
    assert dataset.metadata.class_names == ("Annual Crop Land", "Big Forest")
    records = dataset.records()
    assert [(r["image_id"], r["label"]) for r in records] == [("f/b.jpg", 1), ("a.jpg", 0)]
    assert records[0]["file_name"].endswith("eurosat/2750/f/b.jpg")


def test_aircraft_has_lists_of_its_own(tmp_path):
    folder = tmp_path / "fgvc_aircraft"
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\nA380\n")
    (folder / "images_variant_test.txt").write_text("0001 A380\n0002 707-320\n")
    records = get_dataset("aircraft_test", tmp_path).records()
    assert [(r["image_id"], r["label"]) for r in records] == [("0001.jpg", 1), ("0002.jpg", 0)]
    (folder / "images_variant_test.txt").write_text("0001 Concorde\n")
    with pytest.raises(InputError, match=r"names the variant 'Concorde'"):
        get_dataset("aircraft_test", tmp_path)


def test_a_malformed_split_file_is_named(tmp_path):
    coop(tmp_path, "dtd", [["a.jpg", 0, "dotted"], ["b.jpg", 2, "woven"]])
    with pytest.raises(InputError, match="skips a label"):
        get_dataset("dtd_test", tmp_path)
    for rows, sentence in (
        ([["a.jpg", "0", "dotted"]], r'train\[0\]\[1\] must be a whole number, not "0"'),
        ([["a.jpg", 0.7, "dotted"]], r"train\[0\]\[1\] must be a whole number, not 0.7"),
        ([["a.jpg", 0]], r"train\[0\] must be a list of length 3"),
        ([["../a.jpg", 0, "dotted"]], r"train\[0\]\[0\] must be a relative path"),
        ([["a.jpg", 0, "x"], ["b.jpg", 0, "y"]], r"train\[1\] calls label 0 'y', .* it 'x'"),
    ):
        content = {"train": rows, "val": [], "test": []}
        (tmp_path / COOP["dtd"].split_file).write_text(json.dumps(content))
        with pytest.raises(InputError, match=rf"split file .*json: {sentence}"):
            get_dataset("dtd_test", tmp_path)
    (tmp_path / COOP["dtd"].split_file).write_text('{"train": []}')
    with pytest.raises(InputError, match=r"split file .*json has no list under the key 'val'"):
        get_dataset("dtd_test", tmp_path)


def test_missing_data_says_where_it_was_looked_for(tmp_path):
    for name in ("imagenet_val", "food101_test", "imagenet_c_fog_1", "cifar10_folders_val"):
        with pytest.raises(InputError, match=str(tmp_path)):
            get_dataset(name, tmp_path)
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no images"):
        load_image_folder("x", tmp_path / "empty").records()
    with pytest.raises(InputError, match="no class folders"):
        load_image_folder("x", tmp_path / "empty" / "cat")


def test_the_shipped_pictures_are_what_the_script_draws(prepare_demo):
    dataset = get_dataset("demo_objects_val")
    assert dataset.metadata.class_names == tuple(sorted(prepare_demo.THINGS))
    records = dataset.records()
    assert len(records) == 160
    for record in records[::50]:
        index = int(Path(record["file_name"]).stem)
        assert prepare_demo.object_class(index)[0] == dataset.metadata.class_names[record["label"]]
        drawn = prepare_demo.draw_object(0, "val", index)
        assert np.array_equal(read_labelled_image(record), drawn)


def test_folders_of_tools_are_no_classes_and_nested_images_count(tmp_path):
    for name in ("cat/a.png", "cat/more/a.JPG", "dog/b.webp", "dog/c.tif", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in (
        *(".ipynb_checkpoints/a.png", "__MACOSX/cat/._a.png", "cat/.ipynb_checkpoints/a.png"),
        *("cat/._a.png", "loose.png"),
    ):
        draw(tmp_path / name)
    dataset = load_image_folder("mine", tmp_path).listed()
    assert dataset.metadata.class_names == ("cat", "dog", "empty")
    records = dataset.records(strict=False)
    assert [(r["image_id"], r["label"]) for r in records] == [
        ("cat/a.png", 0),
        ("cat/more/a.JPG", 0),
        ("dog/b.webp", 1),
        ("dog/c.tif", 1),
    ]
    hidden, loose = dataset.problems
    assert "hidden files, which are no images: ._a.png" in hidden
    assert "images outside the class folders: loose.png" in loose
    empty, nested = dataset.notes
    assert "class folders without an image: empty" in empty
    assert "whose images lie in folders of their own, and count: cat" in nested
    with pytest.raises(InputError, match="hidden files"):
        load_image_folder("mine", tmp_path).records()


@pytest.mark.parametrize("names", [("a_b", "a b"), ("Dog", "dog"), ("a__b", "a_b")])
def test_two_folders_of_one_class_are_named(tmp_path, names):
    for name in names:
        draw(tmp_path / name / "x.png")
    with pytest.raises(InputError, match=f"folders '{min(names)}' and '{max(names)}' of .* class"):
        load_image_folder("mine", tmp_path)


def test_wordnet_ids_get_imagenets_names(tmp_path):
    table = class_folders("imagenet")
    missiles = [wnid for wnid, label in table.items() if label == "missile"]
    assert len(missiles) == 2
    for wnid in (*missiles, "n01440764"):
        draw(tmp_path / wnid / "x.png")
    dataset = load_image_folder("mine", tmp_path)
    assert dataset.metadata.class_names == ("tench", "missile", "missile")
    named, shared = dataset.notes
    assert "3 class folders are WordNet ids" in named
    assert "one name for several classes (missile)" in shared
    draw(tmp_path / "n99999999" / "x.png")
    with pytest.raises(InputError, match=r"not ImageNet classes \(n99999999\).* classes"):
        load_image_folder("mine", tmp_path)
    mine = {"n99999999": "gizmo", "n01440764": "fish"}
    dataset = load_image_folder("mine", tmp_path, mine).listed()
    assert dataset.metadata.class_names == ("gizmo", "fish")
    assert [r["image_id"] for r in dataset.records()] == ["n99999999/x.png", "n01440764/x.png"]
    (others,) = dataset.notes
    assert "folders that are no class and are left out: " in others


def test_splits_and_numbers_are_said(tmp_path):
    for name in ("train/cat", "val/cat"):
        draw(tmp_path / "splits" / name / "x.png")
    with pytest.raises(InputError, match=r"holds splits \(train, val\) and no classes"):
        load_image_folder("mine", tmp_path / "splits")
    for name in ("0", "1"):
        draw(tmp_path / "numbers" / name / "x.png")
    assert "are numbers" in load_image_folder("mine", tmp_path / "numbers").notes[0]


def test_coop_lists_that_contradict_themselves(tmp_path):
    coop(tmp_path, "pets", [["a.jpg", 0, "pug"], ["a.jpg", 0, "pug"], ["b.jpg", 1, "Pug"]])
    dataset = get_dataset("pets_test", tmp_path).listed()
    assert dataset.problems == ("the split of pets_test lists a.jpg twice",)
    assert [r["image_id"] for r in dataset.records(strict=False)] == ["a.jpg"]
    assert "one name for several classes (pug, Pug)" in dataset.notes[0]
    content = {"train": [], "val": [], "test": [["a.jpg", 0, "pug"], ["b.jpg", 0, "boxer"]]}
    (tmp_path / COOP["pets"].split_file).write_text(json.dumps(content))
    with pytest.raises(InputError, match="label 0 'boxer', an earlier entry calls it 'pug'"):
        get_dataset("pets_test", tmp_path)


def test_a_class_folder_that_is_a_link_to_nowhere_is_a_problem(tmp_path):
    draw(tmp_path / "cat" / "a.png")
    (tmp_path / "dog").symlink_to(tmp_path / "elsewhere")
    result = load_image_folder("mine", tmp_path).listed()
    assert result.problems == (f"folder {tmp_path} of mine holds broken links: dog",)
    assert len(result.records(strict=False)) == 1


def test_a_class_without_a_name_is_refused(tmp_path):
    draw(tmp_path / "cat" / "a.png")
    draw(tmp_path / "_" / "a.png")
    with pytest.raises(InputError, match="mine: the class name ' ' is blank"):
        load_image_folder("mine", tmp_path)
