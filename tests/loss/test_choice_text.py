"""Choices as text: what registry.parse reads, what it refuses, and what operators are given."""

import pytest
from cases import random_batch

from jolkernels import JointOptimizationLoss, spec
from jolkernels.registry import literal, parse, resolve
from jolkernels.settings import Call

READ = [
    ("regression", "iou", spec.IoU()),
    ("regression", "iou:mode=log", spec.IoU("log")),
    ("regression", "iou:mode='log'", spec.IoU("log")),
    ("regression", "smooth_l1:beta=1e-1", spec.SmoothL1(0.1)),
    ("regression", "shape_iou:scale=2", spec.ShapeIoU(2)),
    ("regression", "nwd:constant=8,mix=.5", spec.NWD(8, 0.5)),
    ("regression", "nwd: constant = 8, mix = .5", spec.NWD(8, 0.5)),
    ("regression", "inner:loss=ciou,ratio=0.7", spec.Inner(spec.CIoU(), 0.7)),
    ("regression", "inner:ratio=1.3", spec.Inner(spec.IoU(), 1.3)),
    ("regression", "inner:loss=(shape_iou:scale=1),ratio=.7", spec.Inner(spec.ShapeIoU(1), 0.7)),
    (
        "regression",
        "focaler:loss=(inner:loss=(shape_iou:scale=1),ratio=.7),low=.1",
        spec.Focaler(spec.Inner(spec.ShapeIoU(1), 0.7), 0.1),
    ),
    ("regression", "5*l1+2*giou", spec.Sum((5, spec.L1()), (2, spec.GIoU()))),
    ("regression", " 5 * l1 + 2 * giou ", spec.Sum((5, spec.L1()), (2, spec.GIoU()))),
    ("regression", "sum", spec.Sum((5, spec.L1()), (2, spec.GIoU()))),
    ("regression", "0.5*giou", spec.Sum((0.5, spec.GIoU()), None)),
    ("regression", "l1+iou:mode=square", spec.Sum((1, spec.L1()), (1, spec.IoU("square")))),
    (
        "regression",
        "5*(iou:mode=log)+2*(inner:loss=ciou,ratio=0.7)",
        spec.Sum((5, spec.IoU("log")), (2, spec.Inner(spec.CIoU(), 0.7))),
    ),
    ("coding", "delta:weights=(10, 10, 5, 5)", spec.Delta((10, 10, 5, 5))),
    ("coding", "delta:weights=[1, 2, 3, 4],clip=2,low_clip=-2", spec.Delta((1, 2, 3, 4), 2, -2)),
    ("coding", "delta:low_clip=None", spec.Delta()),
    ("coding", "cxcywh:scale=(640, 480)", spec.CXCYWH((640, 480))),
    ("classification", "mal:gamma=2", spec.MAL(2)),
    ("classification", "mal:gamma=2,detach=False", spec.MAL(2, detach=False)),
    (
        "classification",
        "varifocal:detach=True,positives=label",
        spec.Varifocal(detach=True, positives="label"),
    ),
    ("location_score", "nwd:constant=8", spec.NWD(8)),
]


@pytest.mark.parametrize(("kind", "text", "choice"), READ)
def test_text_is_read(kind, text, choice):
    assert parse(kind, text) == resolve(kind, text) == choice
    assert type(parse(kind, text)) is type(choice)


@pytest.mark.parametrize("kind", spec.CHOICES)
def test_every_name_is_its_choice_with_the_defaults(kind):
    for name, choice in spec.CHOICES[kind].items():
        assert resolve(kind, name) == choice()


INSIDE = "wanted IoU(mode='linear') or one of GIoU, DIoU, "
NAMES = "wanted one of l1, smooth_l1, l2, iou, "
REFUSED = [
    ("", f"regression: got '', {NAMES}"),
    (":", f"regression: got '', {NAMES}"),
    ("huber", f"regression: got 'huber', {NAMES}"),
    ("huber:beta=1", f"regression: got 'huber', {NAMES}"),
    ("5*huber+l1", f"regression: got 'huber', {NAMES}"),
    ("inner:loss=huber", f"regression: got 'huber', {NAMES}"),
    ("iou:", "regression: iou: got '', wanted mode=VALUE"),
    ("iou:mode", "regression: iou: got 'mode', wanted mode=VALUE"),
    ("iou:mod=log", "regression: iou: got 'mod=log', wanted mode=VALUE"),
    ("iou:mode=log,", "regression: iou: got '', wanted mode=VALUE"),
    ("iou:mode=log,mode=square", "regression: iou: got 'mode=square', wanted mode once"),
    ("iou:mode=", "IoU: mode: got '', wanted one of linear, log, square"),
    ("iou:mode=cubic", "IoU: mode: got 'cubic', wanted one of linear, log, square"),
    ("l1:beta=1", "regression: l1: got 'beta=1', wanted no parameter"),
    ("nwd:size=3", "regression: nwd: got 'size=3', wanted constant=VALUE or mix=VALUE"),
    ("nwd:mix=2", "NWD: mix: got 2, wanted a finite number >= 0 and <= 1"),
    ("smooth_l1:beta=1e999", "SmoothL1: beta: got inf, wanted a finite number"),
    ("focaler:low=.9,high=.2", "Focaler: high: got 0.2, wanted a finite number > 0.9"),
    ("l1+giou+iou", "regression: got 'l1+giou+iou', wanted a sum of at most two losses"),
    ("l1+", f"regression: got '', {NAMES}"),
    ("2*3*l1", "regression: got '2*3*l1', wanted NUMBER*LOSS or LOSS"),
    ("x*l1", "regression: got 'x*l1', wanted NUMBER*LOSS or LOSS"),
    ("l1*5", "regression: got 'l1*5', wanted NUMBER*LOSS or LOSS"),
    ("-1*l1", "Sum: weight: got -1, wanted a finite number >= 0"),
    ("2*(5*l1+giou)", "Sum: first: got Sum(first=(5.0, L1()), second=(1.0, GIoU())), wanted"),
    ("inner:loss=(5*l1)", f"Inner: loss: got Sum(first=(5.0, L1()), second=None), {INSIDE}"),
    ("inner:loss=nwd", f"Inner: loss: got NWD(constant=12.7, mix=1.0), {INSIDE}"),
    ("inner:loss=(iou:mode=log)", f"Inner: loss: got IoU(mode='log'), {INSIDE}"),
    ("inner:ratio=0", "Inner: ratio: got 0, wanted a finite number > 0"),
    ("(l1)", f"regression: got '(l1)', {NAMES}"),
    ("5*((l1))+giou", f"regression: got '(l1)', {NAMES}"),
    ("5*(l1", f"regression: got '(l1', {NAMES}"),
    ("inner:loss=(ciou", f"regression: got '(ciou', {NAMES}"),
    ("sum:first=(5,l1)", "Sum: first: got '5,l1', wanted a pair (weight, loss)"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises((ValueError, TypeError)) as error:
        JointOptimizationLoss(regression=text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"classification": "focal+bce"}, "classification: got 'focal+bce', wanted one of"),
        ({"classification": "2*focal"}, "classification: got '2*focal', wanted one of"),
        ({"classification": "varifocal:detach=yes"}, "Varifocal: detach: got 'yes', wanted True"),
        ({"classification": "mal:detach=0"}, "MAL: detach: got 0, wanted True or False"),
        (
            {"classification": "varifocal:positives=iou"},
            "Varifocal: positives: got 'iou', wanted one of target, label",
        ),
        ({"coding": "cxcywh:scale=640"}, "CXCYWH: scale: got 640, wanted two numbers > 0"),
        ({"coding": "cxcywh:scale=(640, 0)"}, "CXCYWH: scale: got 0, wanted a finite number > 0"),
        ({"coding": "delta:low_clip=9"}, "Delta: low_clip: got 9, wanted a finite number <= 4.13"),
        ({"location_score": "iou:mode=log"}, "location_score: IoU: mode: got 'log', wanted 'lin"),
        ({"location_score": "nwd:mix=.5"}, "location_score: NWD: mix: got 0.5, wanted 1"),
        (
            {"location_score": "nwd", "coding": "cxcywh"},
            "location_score: got NWD(constant=12.7, mix=1.0) with CXCYWH(scale=None), wanted one",
        ),
        ({"location_score": "dotd", "coding": "cxcywh"}, "location_score: got DotD(size=12.7) wi"),
        ({"regression": "nwd", "coding": "cxcywh"}, "regression: got NWD(constant=12.7, mix=1.0)"),
        ({"regression": "l1+nwd", "coding": "cxcywh"}, "regression: got NWD(constant=12.7, mix="),
    ],
)
def test_other_kinds_and_choices_that_do_not_go_together_are_named(choices, message):
    with pytest.raises((ValueError, TypeError)) as error:
        JointOptimizationLoss(**choices)
    assert message in str(error.value)


def test_pixels_that_are_known_can_be_asked_for():
    scale = {"coding": "cxcywh:scale=(640, 480)"}
    for choices in ({"location_score": "nwd"}, {"location_score": "dotd"}, {"regression": "nwd"}):
        assert JointOptimizationLoss(**choices, **scale).settings.coding.scale == (640.0, 480.0)
    JointOptimizationLoss(location_score="simd", coding="cxcywh")  # depends on no unit


@pytest.mark.parametrize(("kind", "text", "choice"), READ)
@pytest.mark.parametrize("groups", [None, 3])
def test_calls_survive_encoding(kind, text, choice, groups):
    coding = {} if kind == "coding" else {"coding": "xyxy"}
    call = Call(JointOptimizationLoss(**{kind: text}, **coding).settings, "sum", "number", groups)
    again = Call.decode(call.encode())
    assert again == call and getattr(again.settings, kind) == choice


def test_lists_of_pairs_and_names_make_a_sum():
    assert spec.Sum([5, "l1"], (2, "iou:mode=log")) == spec.Sum(
        (5.0, spec.L1()), (2.0, spec.IoU("log"))
    )
    for pair in (5, (5,), (5, spec.L1(), 1), None):
        with pytest.raises(TypeError, match=r"Sum: first: got .*, wanted a pair"):
            spec.Sum(pair)
    with pytest.raises(TypeError, match=r"regression: got Focal\(.*wanted a name or one of"):
        spec.Sum((1, spec.Focal()))


def test_text_and_spec_are_the_same_loss():
    batch = random_batch(coding="delta")
    a = JointOptimizationLoss(regression="5*l1+2*(inner:loss=giou)", coding="delta")(**batch)
    loss = spec.Sum((5, spec.L1()), (2, spec.Inner(spec.GIoU())))
    assert a == JointOptimizationLoss(regression=loss, coding=spec.Delta())(**batch)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("-3", -3), ("+.5", 0.5), ("1.", 1.0), ("1e3", 1000.0), ("1E-3", 0.001),
     ("None", None), ("True", True), ("(1, -2.5)", (1, -2.5)), ("[1,None]", (1, None)),
     ("('a', \"b\")", ("a", "b")), ("((1, 2), (3,))", ((1, 2), (3,))),
     ("log", "log"), ("'log'", "log"), ('"log"', "log"), ("(l1)", "l1"), ("(1,l1)", "1,l1"),
     ("", ""), ("()", ""), ("1_000", "1_000"), ("0x10", "0x10"), ("nan", "nan"), ("1 2", "1 2"),
     ("((((1", "((((1"), ("true", "true"), ("1j", "1j")],
)  # fmt: skip
def test_values_are_numbers_words_or_text(text, value):
    assert literal(text) == value and type(literal(text)) is type(value)


def test_numbers_have_exponents():
    assert resolve("regression", "1e+2*l1+2*giou") == spec.Sum((100, spec.L1()), (2, spec.GIoU()))
    assert resolve("regression", " shape_iou:scale=1e+1 ") == spec.ShapeIoU(10)


@pytest.mark.parametrize("text", ["inner:loss=" * 120 + "iou", "-" * 5000 + "1*l1", "l" * 10_000])
def test_long_texts_are_refused_in_short(text):
    with pytest.raises(ValueError, match=r"^regression: got [\d,]+ letters, wanted at most 500$"):
        JointOptimizationLoss(regression=text)


def test_as_many_terms_as_the_kernels_take():
    JointOptimizationLoss(regression="2*(inner:loss=ciou)+3*(focaler:loss=siou)")
    with pytest.raises(ValueError, match="a sum of 5 terms, wanted at most 4"):
        JointOptimizationLoss(regression="l1+(inner:loss=(focaler:loss=(inner)))")
