"""Values in COCO's JSON files that are not what they must be: one sentence each, or one meaning."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lqn_seg.data.catalog import Dataset, get_dataset
from lqn_seg.data.images import write_id_map
from lqn_seg.errors import InputError
from lqn_seg.lab.validate.validate import TRUTH, validate

SQUARE = [[1, 1, 5, 1, 5, 4, 1, 4]]
INSTANCE = {"area": 12, "bbox": [1, 1, 4, 3], "segmentation": SQUARE, "iscrowd": 0}
CATEGORIES = [
    {"id": 7, "name": "cat", "isthing": 1, "color": [9, 8, 7]},
    {"id": 3, "name": "sky", "isthing": 0},
    {"id": 5, "name": "dog", "isthing": 1, "color": "#0aFF10"},
]
IMAGES = [{"id": i, "file_name": f"{i}.png", "height": 6, "width": 8} for i in (1, 2)]
INSTANCES: dict[str, Any] = {
    "images": IMAGES,
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 5, **INSTANCE},
        {"id": 11, "image_id": 2, "category_id": 7, **INSTANCE},
        {
            **{"id": 12, "image_id": 2, "category_id": 5, **INSTANCE},
            "segmentation": {"size": [6, 8], "counts": [3, 2, 43]},
        },
    ],
    "categories": [CATEGORIES[0], CATEGORIES[2]],
}
IDS = np.array([[1] * 8] * 3 + [[2] * 4 + [300] * 4] * 3)
SEGMENTS = [
    {"id": 1, "category_id": 3, "area": 24, "bbox": [0, 0, 8, 3], "iscrowd": 0},
    {"id": 2, "category_id": 7, "area": 12, "iscrowd": 0},
    {"id": 300, "category_id": 5, "area": 12},
]
PANOPTIC: dict[str, Any] = {
    "images": IMAGES,
    "annotations": [
        {"image_id": i, "file_name": f"{i}.png", "segments_info": copy.deepcopy(SEGMENTS)}
        for i in (1, 2)
    ],
    "categories": CATEGORIES,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and panoptic maps; `open_` adds the JSON."""
    folder = tmp_path_factory.mktemp("data") / "coco"
    for name in ("annotations", "val2017", "panoptic_val2017"):
        (folder / name).mkdir(parents=True)
    for i in (1, 2):
        Image.new("RGB", (8, 6)).save(folder / "val2017" / f"{i}.png")
        write_id_map(folder / "panoptic_val2017" / f"{i}.png", IDS)
    return folder.parent


def open_(root: Path, instances: Any = None, panoptic: Any = None) -> Dataset:
    """The data set that the given files make."""
    for name, content in (("instances", instances), ("panoptic", panoptic)):
        path = root / "coco" / "annotations" / f"{name}_val2017.json"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(json.dumps(content))
    return get_dataset(f"coco_2017_val{'' if panoptic is None else '_panoptic'}", root=root)


def changed(content: Any, place: str, value: Any) -> Any:
    """A copy with a value at "annotations[0].image_id", or without one (...)."""
    result = copy.deepcopy(content)
    *path, last = [int(k) if k.isdigit() else k for k in re.findall(r"\w+", place)]
    inside = result
    for key in path:
        inside = inside[key]
    inside[last] = value
    if value is ...:
        del inside[last]
    return result


WHOLE, SIDE = "must be a whole number", "must be a whole number >= 1"
BOTH: list[tuple[str, Any, str]] = [
    ("images", ..., "has no list under the key 'images'"),
    ("annotations", ..., "has no list under the key 'annotations'"),
    ("annotations", [], "lists nothing under the key 'annotations'"),
    ("categories", [], "lists nothing under the key 'categories'"),
    ("images[0].width", ..., r"images\[0\] has no key 'width'"),
    ("categories[1].name", ..., r"categories\[1\] has no key 'name'"),
    ("images[0].id", None, "must be a whole number or text, not null"),
    ("images[0].id", 1.0, "must be a whole number or text, not 1.0"),
    ("images[0].id", 3.5, "must be a whole number or text, not 3.5"),
    ("images[0].id", True, "must be a whole number or text, not true"),
    ("images[0].id", [1], r"must be a whole number or text, not \[1\]"),
    ("images[1].id", 1, r"images\[\].id 1 occurs twice"),
    ("images[1].id", "2", r"images\[1\].id is '2' and images\[0\].id is 1"),
    ("images[0].height", None, f"{WHOLE}, not null"),
    ("images[0].height", "6", f'{WHOLE}, not "6"'),
    ("images[0].height", 0, f"{SIDE}, not 0"),
    ("images[0].width", -8, f"{SIDE}, not -8"),
    ("images[0].width", 8.5, f"{WHOLE}, not 8.5"),
    ("images[0].width", False, f"{WHOLE}, not false"),
    ("images[0].width", 10**30, f"{WHOLE} <= 1000000, not 1000"),
    ("images[0].file_name", None, "must be text, not null"),
    ("images[0].file_name", 5, "must be text, not 5"),
    ("images[0].file_name", "", "must be a relative path"),
    ("images[0].file_name", "/etc/passwd", "must be a relative path without '..', not '/etc/p"),
    ("images[0].file_name", "a/../../1.png", "must be a relative path without '..'"),
    ("images[0].file_name", "1\0.png", "a character that is not allowed in file names"),
    ("images[0].file_name", "1" * 300, "is too long for a file"),
    ("images[0].file_name", ".", "must be a relative path"),
    ("images[0]", 1, "must be an object, not 1"),
    ("images", None, "must be a list, not null"),
    ("annotations", {}, "must be a list, not {}"),
    ("annotations[0].image_id", None, "must be a whole number or text, not null"),
    ("annotations[0].image_id", "1", r"is '1', but the ids of 'images' are numbers"),
    ("annotations[0].image_id", 1.0, "must be a whole number or text, not 1.0"),
    ("categories[0].id", None, f"{WHOLE}, not null"),
    ("categories[0].id", "7", f'{WHOLE}, not "7"'),
    ("categories[0].id", 7.0, f"{WHOLE}, not 7.0"),
    ("categories[0].name", None, "must be text, not null"),
    ("categories[0].name", "", "must be text of length >= 1"),
    ("categories[0].name", " ", "' ' is blank"),
    ("categories[0].name", "dog", r"categories\[\].name 'dog' occurs twice"),
    ("categories[0].id", 5, r"categories\[\].id 5 occurs twice"),
    ("categories[0].isthing", "0", 'must be 0 or 1, not "0"'),
    ("categories[0].isthing", 2, "must be a whole number <= 1, not 2"),
    ("categories[0].isthing", None, "must be 0 or 1, not null"),
    *(
        ("categories[0].color", color, "must be three whole numbers 0 .. 255 or '#rrggbb'")
        for color in ("red", "#12345", "#gg0000", "", [1, 2], [1, 2, 256], [-1, 2, 3], [True, 2, 3])
    ),
]
FLAG = "must be 0 or 1, not"
OF_INSTANCES: list[tuple[str, Any, str]] = [
    ("annotations[1].bbox", ..., r"annotations\[1\] has no key 'bbox'"),
    ("annotations[1].id", 10, r"annotations\[\].id 10 occurs twice"),
    ("annotations[1].id", None, "must be a whole number or text, not null"),
    ("annotations[0].category_id", None, f"{WHOLE}, not null"),
    ("annotations[0].category_id", "5", f'{WHOLE}, not "5"'),
    ("annotations[0].category_id", 5.0, f"{WHOLE}, not 5.0"),
    ("annotations[0].category_id", 6, "is not among the things"),
    ("annotations[0].iscrowd", "0", f'{FLAG} "0"'),
    ("annotations[0].iscrowd", 2, "must be a whole number <= 1, not 2"),
    ("annotations[0].iscrowd", 0.5, f"{FLAG} 0.5"),
    ("annotations[0].area", None, "must be a number, not null"),
    ("annotations[0].area", "12", 'must be a number, not "12"'),
    ("annotations[0].area", -1, "must be a whole number >= 0, not -"),
    ("annotations[0].area", float("nan"), "is not valid JSON"),
    ("annotations[0].bbox", None, "must be a list, not null"),
    ("annotations[0].bbox", [1, 2, 3], "must be a list of length 4"),
    ("annotations[0].bbox[1]", None, "must be a number, not null"),
    ("annotations[0].bbox[2]", -1, "must be a whole number >= 0, not -"),
    ("annotations[0].segmentation", None, "must be an object or a list, not null"),
    ("annotations[0].segmentation", "abc", "must be an object or a list, not"),
    ("annotations[0].segmentation", [], "is an empty list"),
    ("annotations[0].segmentation", [1, 2, 3, 4, 5, 6], r"segmentation\[0\] must be a list, not 1"),
    ("annotations[0].segmentation[0][2]", None, "must be a number, not null"),
    ("annotations[0].segmentation[0][2]", "5", 'must be a number, not "5"'),
    ("annotations[0].segmentation[0]", [[1, 1], [2, 2]], "must be a number, not"),
    ("annotations[2].segmentation.counts", None, "must be text or a list, not null"),
    ("annotations[2].segmentation.counts[1]", -2, f"{WHOLE} >= 0, not -2"),
    ("annotations[2].segmentation.counts[1]", 2.5, f"{WHOLE}, not 2.5"),
    ("annotations[2].segmentation.counts[1]", None, f"{WHOLE}, not null"),
    ("annotations[2].segmentation.counts[1]", 1, r"counts add up to 47 pixels, the image is 6 x 8"),
    ("annotations[2].segmentation.size", None, "must be a list, not null"),
    ("annotations[2].segmentation.size", [8, 6], r"size is \[8, 6\], the image is 6 x 8"),
    ("annotations[2].segmentation.size", [6, 8, 1], "must be a list of length 2"),
    ("annotations[2].segmentation", {"size": [6, 8]}, "has no key 'counts'"),
]
OF_PANOPTIC: list[tuple[str, Any, str]] = [
    ("categories[1].isthing", ..., r"categories\[1\] has no key 'isthing'"),
    ("annotations[0].segments_info", ..., "has no key 'segments_info'"),
    ("annotations[0].segments_info[2].id", ..., r"segments_info\[2\] has no key 'id'"),
    ("annotations[0].file_name", None, "must be text, not null"),
    ("annotations[0].file_name", "../1.png", "must be a relative path"),
    ("annotations[1].image_id", 1, r"annotations\[\].image_id 1 occurs twice"),
    ("annotations[0].segments_info", None, "must be a list, not null"),
    ("annotations[0].segments_info[0].id", None, f"{WHOLE}, not null"),
    ("annotations[0].segments_info[0].id", "1", f'{WHOLE}, not "1"'),
    ("annotations[0].segments_info[0].id", 0, f"{SIDE}, not 0"),
    ("annotations[0].segments_info[0].id", 2**24, f"{WHOLE} <= 16777215, not 16777216"),
    ("annotations[0].segments_info[0].id", 2, r"annotations\[0\].segments_info\[\].id 2 occurs"),
    ("annotations[0].segments_info[0].category_id", "3", f'{WHOLE}, not "3"'),
    ("annotations[0].segments_info[0].category_id", 4, "is not among the ids of 'categories'"),
    ("annotations[0].segments_info[0].iscrowd", "0", f'{FLAG} "0"'),
    ("annotations[0].segments_info[0].area", None, "must be a number, not null"),
    ("annotations[0].segments_info[0].area", "24", 'must be a number, not "24"'),
    ("annotations[0].segments_info[0].area", -24, "must be a whole number >= 0, not -"),
]
CASES = [
    *(("instances", *case) for case in (*BOTH, *OF_INSTANCES)),
    *(("panoptic", *case) for case in (*BOTH, *OF_PANOPTIC)),
]


def test_what_is_changed_below_is_right_before(root: Path) -> None:
    for contents in ((INSTANCES,), (INSTANCES, PANOPTIC), (None, PANOPTIC)):
        actual = validate(open_(root, *contents), progress=False)
        assert actual.problems == [] and actual.images == 2


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("kind", "place", "value", "message"), CASES)
def test_one_sentence_names_file_record_and_key(
    root: Path, kind: str, place: str, value: Any, message: str
) -> None:
    contents = {"instances": INSTANCES, "panoptic": PANOPTIC}
    with pytest.raises(InputError) as caught:
        open_(root, **{kind: changed(contents[kind], place, value)})
    sentence = str(caught.value)
    assert re.search(message, sentence), sentence
    assert f"{kind}_val2017.json" in sentence and "\n" not in sentence
    record = re.escape(place.split(".")[0]).replace(r"\[0\]", r"(\[0\]|\[\])")
    named = re.search(record.replace(r"\[1\]", r"(\[1\]|\[\])"), sentence)
    assert named or "not valid JSON" in sentence, sentence


def test_a_panoptic_sets_instances_are_checked_before_the_first_image(root: Path) -> None:
    broken = changed(INSTANCES, "annotations[2].segmentation.counts", [3, 2])
    dataset = open_(root, broken, PANOPTIC)  # training needs no instances
    for use in (validate, Dataset.with_instances):
        with pytest.raises(InputError, match=r"annotations\[2\].segmentation.counts add up to 5"):
            use(dataset)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            "categories[1].name",
            "hound",
            "id 5 is 'hound', and coco_2017_val_panoptic calls it 'dog",
        ),
        ("categories[1].id", 9, "id 9 is 'dog', and coco_2017_val_panoptic has none"),
        ("images[1].id", 4, "lists no image with id 2"),
        ("images[1].height", 7, "image 2 is 7 x 8 .*, but its record says 6 x 8"),
    ],
)
def test_instances_of_another_data_set(root: Path, place: str, value: Any, message: str) -> None:
    content = changed(INSTANCES, place, value)
    content["annotations"] = content["annotations"][:1]  # of image 1
    content["annotations"][0]["category_id"] = 7
    dataset = open_(root, content, PANOPTIC)
    with pytest.raises(InputError, match=rf"instances_val2017\.json.*{message}"):
        for record in dataset.records():
            dataset.metadata.read_instances(record)


def test_null_and_missing_iscrowd_are_0(root: Path) -> None:
    for value in (None, False, ...):
        content = changed(INSTANCES, "annotations[0].iscrowd", value)
        actual = validate(open_(root, content), progress=False)
        assert (
            actual.problems == [] and "the same by pycocotools" in actual.scores["segm"]
        )  # it reads the file too
        assert actual.scores["segm"][TRUTH]["AP"] == pytest.approx(100)
    panoptic = changed(PANOPTIC, "annotations[0].segments_info[0].iscrowd", None)
    assert open_(root, panoptic=panoptic).records()[0]["segments_info"][0]["iscrowd"] == 0


def test_a_mask_without_a_pixel_is_a_problem_of_validation(root: Path) -> None:
    beside = [[100, 100, 120, 100, 120, 120]]
    with pytest.raises(InputError, match=r"annotations\[0\].segmentation\[0\] reaches 120 pixels"):
        open_(root, changed(INSTANCES, "annotations[0].segmentation", beside))
    beside = [[9, 9, 12, 9, 12, 12]]
    actual = validate(open_(root, changed(INSTANCES, "annotations[0].segmentation", beside)))
    (problem,) = actual.problems
    assert "annotations[0].segmentation has no pixel in image 1, so AP counts it" in problem


def test_colours(root: Path) -> None:
    table = open_(root, panoptic=PANOPTIC).metadata.categories
    assert [(c.id, c.color) for c in table] == [(3, None), (5, (10, 255, 16)), (7, (9, 8, 7))]


def test_text_ids_are_ids_where_all_are_text(root: Path) -> None:
    content = json.loads(json.dumps(INSTANCES).replace('"image_id": ', '"image_id": 1'))
    for image, name in zip(content["images"], ("11", "12")):
        image["id"] = int(name)
    as_text = json.loads(re.sub(r'("image_id"|"id"): (1[12])\b', r'\1: "\2"', json.dumps(content)))
    assert {image["id"] for image in as_text["images"]} == {"11", "12"}
    actual = validate(open_(root, as_text), progress=False)
    assert actual.problems == [] and actual.scores["segm"][TRUTH]["AP"] == pytest.approx(100)


def test_the_order_of_the_categories_in_the_file_means_nothing(root: Path) -> None:
    expected = open_(root, INSTANCES, PANOPTIC)
    turned = [{**c, "categories": c["categories"][::-1]} for c in (INSTANCES, PANOPTIC)]
    for contents in (turned, (INSTANCES, turned[1])):
        dataset = open_(root, *contents)
        assert dataset.metadata.categories == expected.metadata.categories
        assert dataset.records() == expected.records()
        for record in dataset.records():
            actual = dataset.metadata.read_instances(record)
            assert actual == expected.metadata.read_instances(record)
    names = open_(root, turned[0]).metadata.class_names
    assert names == ("dog", "cat")  # by id, as pycocotools' getCatIds and Detectron2 sort them


def test_an_annotation_without_image_is_a_problem(root: Path) -> None:
    content = changed(INSTANCES, "annotations[1].image_id", 99)
    sentence = r"annotations\[1\] has image_id 99, which no entry of 'images' has"
    for contents in ((content,), (content, PANOPTIC)):
        dataset = open_(root, *contents).with_instances()
        with pytest.raises(InputError, match=sentence):
            dataset.records()
        assert len(dataset.records(strict=False)) == 2
        actual = validate(dataset, progress=False)
        assert len(actual.problems) == 1 and re.search(sentence, actual.problems[0])
        assert actual.scores["segm"][TRUTH]["AP"] == pytest.approx(100)


def test_an_area_that_is_not_the_maps_is_named(root: Path) -> None:
    """PQ believes the area: 1 pixel less is another IoU, and 0 would divide by zero."""
    content = changed(PANOPTIC, "annotations[0].segments_info[1].area", 0)
    dataset = open_(root, panoptic=content)
    sentence = r"segment 2 of image 1 has 12 pixels in .*1\.png, but segments_info says area 0"
    with pytest.raises(InputError, match=sentence):
        dataset.metadata.read_panoptic(dataset.records()[0])
    (problem,) = validate(dataset, progress=False).problems
    assert re.search(sentence, problem)
