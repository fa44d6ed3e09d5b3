"""The page of a report: every number and sentence on it is true, and nothing in it is run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from plain_policy import make_policy

from segpipe.confidence.calibration_error import expected_calibration_error
from segpipe.confidence.certify import BadFraction
from segpipe.confidence.policy import BadFractionPromise, ClassGuard, MeanLossPromise, Policy
from segpipe.confidence.promise import promise
from segpipe.evaluation.measure import Measurements, summarise
from segpipe.reports.content import ReportFacts, page_content
from segpipe.reports.measured import measured_images, routing_under
from segpipe.reports.page import render

CLASSES = ("ground", "square")
CONFUSION = np.array([[80, 10], [5, 25]])
ABOUT = ReportFacts(
    "s3://models/streets", "0123456789ab", "s3://data/streets", "test", "2025-11-23T10:00:00+00:00"
)
HOSTILE = "<script>alert('x')</script>&\"><img src=x onerror=alert(1)>"


def measured(
    ious: list[float], scores: list[float], confidences: list[float] | None = None, **fields: Any
) -> Measurements:
    """Measurements with these values; the rivals are the reversed score and a constant."""
    values = {
        "classes": CLASSES,
        "keys": tuple(f"image-{number}" for number in range(len(ious))),
        "image_ious": np.asarray(ious, dtype=float),
        "confidences": np.asarray(confidences or [0.5] * len(ious)),
        "class_confidences": np.tile([0.9, 0.4], (len(ious), 1)),
        "scores": {
            "discriminator": np.asarray(scores, dtype=float),
            "entropy": -np.asarray(scores, dtype=float),
            "soft_dice": np.zeros(len(ious)),
        },
        "confusion": CONFUSION,
    }
    return Measurements(**values | fields)


def test_each_group_stands_by_itself_the_worst_masks_first() -> None:
    both = measured(
        [0.9, 0.8, 0.2, 0.4, 0.6],
        [3.0, 1.0, 2.0, 0.0, 9.0],
        [0.9, 0.6, 0.7, 0.3, 0.5],
        groups=("day", "day", "night", "night", "<b>dusk</b>"),
    )
    rows = page_of(both, None).rows
    found = [row for row in rows if row and row[0] in ("day", "night", "<b>dusk</b>")]
    # The reversed score orders the two of the night right, the routing one those of the day.
    assert found == [
        ["night", "2", "0.3000", "0.5000", "-1.0000", "1.0000", "entropy"],
        ["<b>dusk</b>", "1", "0.6000", "0.5000", "–", "–", "discriminator"],
        ["day", "2", "0.8500", "0.7500", "1.0000", "1.0000", "discriminator"],
    ]


def test_of_many_groups_the_worst_are_shown_and_the_rest_is_counted() -> None:
    many = measured(
        [number / 100 for number in range(60)],
        [float(number) for number in range(60)],
        groups=tuple(f"camera-{number:02d}" for number in range(60)),
    )
    part = page_content(measured_images(many), summarise(many), None, ABOUT, ()).groups
    assert part is not None
    assert [row.name for row in part.rows] == [f"camera-{number:02d}" for number in range(50)]
    assert part.left_out == 10


FOUR = measured([0.9, 0.8, 0.2, 0.4], [3.0, 1.0, 2.0, 0.0], [0.9, 0.6, 0.7, 0.3])


def policy_of(**fields: Any) -> Policy:
    """A policy that accepts from score 1 on and calls an IoU below 0.5 bad."""
    scores = np.arange(100.0)
    made = make_policy(
        scores, scores / 99, "0123456789ab", BadFraction(0.5, 0.2), 0.9, "f" * 64, "2025-11-01"
    )
    return replace(made, threshold=1.0, **fields)


@dataclass
class PageReader(HTMLParser):
    """What a page holds: elements with attributes, its text, and the rows of its tables."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    rows: list[list[str]] = field(default_factory=list)
    in_cell: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data.strip()

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def numbers(self) -> list[float]:
        return [float(str(data["value"])) for data in self.attributes("data")]

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == name)

    def tile(self, name: str) -> str:
        """The figure under this name."""
        words = [word.strip() for word in self.text.splitlines() if word.strip()]
        return re.sub(f"^{name}", "", next(word for word in words if re.match(f"{name}[0-9–]", word)))


def source_of(measurements: Measurements, policy: Policy | None, about: ReportFacts = ABOUT) -> str:
    measured = measured_images(measurements)
    return render("confidence.html", page_content(measured, summarise(measurements), policy, about, ()))


def page_of(measurements: Measurements, policy: Policy | None, about: ReportFacts = ABOUT) -> PageReader:
    reader = PageReader()
    reader.feed(source_of(measurements, policy, about))
    return reader


def test_the_page_says_what_was_evaluated() -> None:
    page = page_of(FOUR, None)
    for text in (ABOUT.model, ABOUT.model_id, ABOUT.data, ABOUT.split, ABOUT.created_at):
        assert text in page.text
    assert ("viewport", "width=device-width, initial-scale=1") in [
        (meta.get("name"), meta.get("content")) for meta in page.attributes("meta")
    ]


def test_every_figure_of_the_evaluation_is_on_the_page_unrounded() -> None:
    evaluation = summarise(FOUR)
    numbers = page_of(FOUR, None).numbers()
    assert {evaluation.pixel_accuracy, evaluation.mean_iou, evaluation.mean_image_iou} <= set(numbers)
    assert set(evaluation.per_class_iou.values()) <= set(numbers)
    for merits in filter(None, evaluation.scores.values()):
        assert {merit for merit in merits.values() if not math.isnan(merit)} <= set(numbers)
    assert expected_calibration_error(FOUR.confidences, FOUR.image_ious) in numbers


def test_the_table_of_scores_has_each_merit_in_its_column() -> None:
    page = page_of(FOUR, None)
    head = next(row for row in page.rows if row[0] == "score")
    assert [name.removesuffix("is better") for name in head[1:]] == [
        "AURClower ", "e-AURClower ", "AUGRClower ", "gap closedhigher ", "Spearmanhigher "
    ]  # fmt: skip
    for name, merits in summarise(FOUR).scores.items():
        if merits is None:
            continue
        shown = page.row(name.replace("_", " "))[1:]
        assert shown == ["–" if math.isnan(value) else f"{value:.4f}" for value in merits.values()]
    assert page.row("soft dice")[-1] == "–"  # a constant has no rank correlation


def best_of_each_column(page: PageReader) -> list[int]:
    return [sum("best" in (cell.get("class") or "") for cell in cells) for cells in columns(page)]


def columns(page: PageReader) -> list[list[dict[str, str | None]]]:
    cells = page.attributes("td")[:15]  # three scores of five merits come first
    return [cells[column::5] for column in range(5)]


def test_the_best_of_each_column_is_marked() -> None:
    page = page_of(FOUR, None)
    assert best_of_each_column(page) == [1, 1, 1, 1, 1]
    assert all("best" in (cells[0].get("class") or "") for cells in columns(page))


def test_of_equals_all_are_best_and_an_undefined_merit_never_is() -> None:
    twins = FOUR.scores | {"entropy": FOUR.scores["discriminator"]}
    assert best_of_each_column(page_of(replace(FOUR, scores=twins), None)) == [2, 2, 2, 2, 2]
    equal = measured([0.5, 0.5, 0.5], [1, 2, 3])
    assert best_of_each_column(page_of(equal, None))[3:] == [0, 0]


@pytest.mark.parametrize(
    "fields",
    [{"keys": (HOSTILE, "b", "c", "d")}, {"keys": ("a", "b", HOSTILE, "d")}, {"classes": (HOSTILE, "$x_{$")}],
)
def test_a_hostile_name_is_shown_not_run(fields: dict[str, Any]) -> None:
    source = source_of(replace(FOUR, **fields), policy_of(), replace(ABOUT, split=HOSTILE, data=HOSTILE))
    page = PageReader()
    page.feed(source)
    assert HOSTILE in page.text
    assert "<script" not in source
    assert page.attributes("img") == []


def test_the_promise_and_what_it_would_have_accepted() -> None:
    policy = policy_of()
    page = page_of(FOUR, policy)
    assert promise(policy) in page.text
    assert policy.policy_id in page.text
    # Scores 3, 1 and 2 are accepted, with IoUs 0.9, 0.8 and 0.2.
    assert page.tile("accepted") == "3"
    assert page.tile("share accepted") == "0.7500"
    assert page.tile("bad among accepted") == "1"
    assert page.tile("share bad") == "0.3333"


def test_a_promised_mean_loss_is_compared_with_the_mean_loss() -> None:
    page = page_of(FOUR, policy_of(promised=MeanLossPromise(0.3, 0.25)))
    assert page.tile("accepted") == "3"
    assert page.tile("mean loss of accepted") == f"{(0.1 + 0.2 + 0.8) / 3:.4f}"
    assert "bad among accepted" not in page.text


def test_counts_on_any_split_come_with_the_right_warning() -> None:
    assert "prove nothing" in page_of(FOUR, policy_of()).text
    page = page_of(FOUR, policy_of(), replace(ABOUT, calibration_split=True))
    assert "no independent check" in page.text
    assert "prove nothing" not in page.text


def test_without_a_threshold_nothing_is_accepted() -> None:
    policy = replace(policy_of(), threshold=None, accepted=0, promised=BadFractionPromise(0.5, 0.2, 0))
    page = page_of(FOUR, policy)
    assert "nothing is accepted" in page.text
    assert (page.tile("accepted"), page.tile("share bad")) == ("0", "–")


def test_without_a_policy_the_way_out_is_named() -> None:
    page = page_of(FOUR, None)
    assert "run segpipe calibrate" in page.text
    assert "would have done" not in page.text
    assert page.row("image-2")[-1] == "–"


def test_a_policy_that_cannot_be_used_is_spoken_of() -> None:
    page = page_of(FOUR, None, replace(ABOUT, policy_problem="s3://m/policy.json: is <damaged>"))
    assert "s3://m/policy.json: is <damaged>" in page.text
    assert "has no policy" not in page.text


def test_guards_and_groups_are_spoken_of() -> None:
    page = page_of(FOUR, policy_of(guards=(ClassGuard("square", 1, 0.5),), n_images=400))
    assert "square below 0.5 goes to review" in page.text
    assert "each group of images once" in page.text


def test_a_guarded_image_is_not_counted_as_accepted() -> None:
    guarded = replace(FOUR, class_confidences=np.array([[0.9, 0.6], [0.9, 0.4], [0.9, np.nan], [0.9, 0.9]]))
    policy = policy_of(guards=(ClassGuard("square", 1, 0.5),))
    # From score 1 on three are accepted; the second shows a square at 0.4, the third shows none.
    assert routing_under(policy, measured_images(guarded)).accepted.tolist() == [True, False, True, False]


def test_passwords_are_not_shown() -> None:
    secret = "ftp://me:hunter2-hunter2@host/a"
    about = replace(ABOUT, model=secret, data=secret, policy_problem=f"cannot read {secret}")
    assert "hunter2" not in source_of(FOUR, None, about)


def test_the_worst_images_are_those_whose_score_ranks_them_too_high() -> None:
    # Ranks of score 4 2 3 1, of IoU 4 3 1 2: only image 2 stands higher (by two) than it should.
    rows = [row for row in page_of(FOUR, policy_of()).rows if row and row[0].startswith("image-")]
    assert rows == [["image-2", "0.2000", "0.7000", "2.0000", "accepted"]]


def test_at_most_ten_images_are_listed_worst_first() -> None:
    ious = np.linspace(0.1, 0.9, 30)
    rows = [row for row in page_of(measured(ious.tolist(), (-ious).tolist()), None).rows if row]
    listed = [row[0] for row in rows if row[0].startswith("image-")]
    assert listed == [f"image-{number}" for number in range(10)]


def test_a_perfect_score_has_no_worst_image() -> None:
    page = page_of(measured([0.1, 0.5, 0.9], [1, 2, 3]), None)
    assert "No image's score ranks it above its IoU" in page.text


def test_an_image_without_a_labelled_pixel_counts_nowhere() -> None:
    ious, scores = [0.9, math.nan, 0.2, 0.4], [3.0, 9.0, 2.0, 0.0]
    page = page_of(measured(ious, scores), policy_of())
    assert "1 of 4 images" in page.text
    assert (page.tile("accepted"), page.tile("share accepted")) == ("2", "0.6667")
    assert "image-1" not in page.text
    assert "no IoU is known" not in page_of(FOUR, None).text


@pytest.mark.parametrize(
    "odd",
    [
        measured([0.7], [1.5]),
        measured([0.1, 0.5, 0.9], [2, 2, 2]),
        measured([0.5, 0.5, 0.5], [1, 2, 3]),
        measured([0.0, 1.0], [1, 2], [0.0, 1.0]),
        replace(FOUR, classes=("ground", "square", "never"), confusion=np.pad(CONFUSION, (0, 1))),
    ],
    ids=["one image", "equal scores", "equal IoUs", "extremes", "absent class"],
)
@pytest.mark.parametrize("policy", [None, policy_of()], ids=["no policy", "policy"])
def test_odd_measurements_have_a_page_without_nan(odd: Measurements, policy: Policy | None) -> None:
    page = page_of(odd, policy)
    assert not any(math.isnan(number) for number in page.numbers())
    assert not re.search(r"\b(nan|inf|None)\b", page.text)
    assert page.row(odd.classes[-1])[1] == ("–" if odd.classes[-1] == "never" else "0.6250")
