"""info_nce against a loop over rows, and its limits."""

from __future__ import annotations

import math

import pytest
import torch

from plr_kernels import info_nce, use_backend
from tests.plr_kernels.harness import INFO_NCE, assert_accurate, evaluate, make_case, targets

SIZES = {"groups": 2, "batch": 4, "dim": 3, "temperature": 0.6}


@pytest.fixture(params=targets(), ids=str)
def target(request):
    if request.param.backend not in INFO_NCE.implementations:
        pytest.skip("this backend has no info_nce")
    with use_backend(request.param.backend):
        yield request.param


def make(target, **sizes):
    return make_case(INFO_NCE, {**SIZES, **sizes}, device=target.device)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def row_by_row(view1, view2, temperature, labels=None):
    """Eq. 8 as printed, in Python floats; of rows with a label in common, only i = j counts."""
    labels = [[[]] * view1.shape[1]] * len(view1) if labels is None else labels.tolist()
    losses = []
    for first, second, own in zip(view1.double().tolist(), view2.double().tolist(), labels, strict=True):
        loss = 0.0
        for i in range(len(first)):
            counts = [i == j or all(a != b for a, b in zip(own[i], own[j], strict=True)) for j in range(len(own))]
            for anchors, others in ((first, second), (second, first)):
                similarities = [math.exp(cosine(anchors[i], other) / temperature) for other in others]
                loss -= math.log(similarities[i] / sum(s for s, j in zip(similarities, counts, strict=True) if j))
        losses.append(loss / len(first))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("sizes", [{}, {"groups": 1}, {"temperature": 2.0}, {"batch": 2}], ids=str)
def test_equals_row_by_row(target, sizes):
    case = make(target, **sizes)
    expected = row_by_row(*case.tensors.values(), case.options["temperature"])
    assert info_nce(**case.tensors, **case.options).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.6, 0.01])
@pytest.mark.parametrize("labels", [1, 2])
def test_rows_with_a_label_in_common_are_no_negatives(target, labels, temperature):
    case = make(target, batch=9, labels=labels, temperature=temperature)
    options = case.options
    expected = row_by_row(*case.tensors.values(), options["temperature"], options["labels"])
    assert info_nce(**case.tensors, **options).item() == pytest.approx(expected, rel=1e-5)
    assert expected < 0.99 * info_nce(**case.tensors, temperature=temperature).item()
    assert_accurate(evaluate(info_nce, case), INFO_NCE, case)


@pytest.mark.parametrize("temperature", [0.6, 0.01])
def test_labels_decide_by_being_equal_alone(target, temperature):
    case = make(target, batch=67, labels=1, temperature=temperature)
    views, labels = case.tensors.values(), case.options["labels"]
    masked = info_nce(*views, temperature=temperature, labels=labels)
    assert torch.equal(info_nce(*views, temperature=temperature, labels=-3 - labels), masked)
    all_different = torch.arange(67, device=labels.device).view(1, 67, 1).expand(2, 67, 1)
    none = info_nce(*views, temperature=temperature)
    assert torch.equal(info_nce(*views, temperature=temperature, labels=all_different), none)
    assert torch.equal(info_nce(*views, temperature=temperature, labels=labels[..., :0]), none)
    case.options["labels"] = torch.zeros_like(labels)  # nobody has a negative
    for name, result in evaluate(info_nce, case).items():
        assert not result.any(), name


@pytest.mark.parametrize("sizes", [{"groups": 0}, {"batch": 0}, {"batch": 1}], ids=str)
def test_no_negatives_give_zero(target, sizes):
    for name, result in evaluate(info_nce, make(target, **sizes)).items():
        assert not result.any(), name


def test_symmetric_and_indifferent_to_length(target):
    case = make(target)
    view1, view2 = case.tensors.values()
    expected = info_nce(view1, view2)
    torch.testing.assert_close(info_nce(view2, view1), expected)
    torch.testing.assert_close(info_nce(view1 * 7, view2 / 3), expected)
    assert info_nce(view1, view1) < expected


def test_zero_vector_has_similarity_zero(target):
    case = make(target, groups=1)
    case.tensors["view1"][0, 0] = 0
    results = evaluate(info_nce, case)
    for name, result in results.items():
        assert result.isfinite().all(), name
    units = [torch.nn.functional.normalize(view[0].double(), dim=-1) for view in case.tensors.values()]
    similarities = units[0] @ units[1].T / SIZES["temperature"]
    assert not similarities[0].any()
    expected = -(similarities.log_softmax(0) + similarities.log_softmax(1)).diagonal().mean()
    torch.testing.assert_close(results["output"].double(), expected, rtol=1e-5, atol=1e-6)


def test_vectors_below_the_floor_are_only_scaled(target):
    """Their norms count as 1e-8, so that the gradient has a part along the vector too."""
    case = make(target)
    for name, (row, length) in {"view1": (1, 0.3e-8), "view2": (2, 0.9e-8)}.items():
        view = case.tensors[name][1]
        view[row] *= length / view[row].norm()
    assert_accurate(evaluate(info_nce, case), INFO_NCE, case)


WRONG_ARGUMENTS = {
    "view2 must be a torch.Tensor, found NoneType": {"view2": None},
    r"view1 must have shape \[G, B, D\], found \[4, 3\]": {"view1": torch.zeros(4, 3)},
    r"view2 must have shape \[G=2, B=4, D=3\], found \[2, 5, 3\]": {"view2": torch.zeros(2, 5, 3)},
    "view2 must have the dtype of view1, torch.float32, found torch.float16": {
        "view2": torch.zeros(2, 4, 3, dtype=torch.float16)
    },
    "temperature must be above 0, found 0.0": {"temperature": 0.0},
    "temperature must be a number, found str": {"temperature": "1"},
    r"labels must have shape \[G=2, B=4, K\], found \[2, 4\]": {"labels": torch.zeros(2, 4, dtype=torch.int64)},
    "labels must have dtype torch.int64, found torch.int32": {"labels": torch.zeros(2, 4, 1, dtype=torch.int32)},
    "labels must be on the device of view1, cpu, found meta": {
        "labels": torch.zeros(2, 4, 1, dtype=torch.int64, device="meta")
    },
}


@pytest.mark.parametrize("message", WRONG_ARGUMENTS)
def test_wrong_arguments(message):
    case = make_case(INFO_NCE, SIZES)
    with pytest.raises((TypeError, ValueError), match=message):
        info_nce(**{**case.tensors, **case.options, **WRONG_ARGUMENTS[message]})


def test_no_dimension():
    with pytest.raises(ValueError, match="view1 must have at least one entry along D"):
        info_nce(torch.zeros(1, 2, 0), torch.zeros(1, 2, 0))


def test_a_loss_far_below_rounding_is_not_zero(target):
    if target.backend == "reference":
        pytest.skip("the plain formula, which loses it")
    size, temperature = 5, 0.05
    view = torch.eye(size, device=target.device)[None]
    loss = info_nce(view, view, temperature=temperature)
    # Both directions: log(1 + 4 e^(0 − 20)) each.
    assert loss.item() == pytest.approx(2 * math.log1p((size - 1) * math.exp(-1 / temperature)), rel=1e-5)
