"""target_rank, target_mixture_rank and top_mixture_items in C++: every instruction set, every way that blocks can end.

Small integers make every score exact, so that counts and ids must equal those of the reference in float64, ties
included.
"""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from plr_kernels import extension, target_mixture_rank, target_rank, top_items, top_mixture_items, use_backend
from plr_kernels.top_mixture_items import cpu as top_mixture_items_cpu
from tests.plr_kernels.cpu.test_cpp import INSTRUCTION_SETS
from tests.plr_kernels.harness import DTYPES, LAYOUTS, normal
from tests.plr_kernels.operators.test_top_items import masks, with_forbidden
from tests.plr_kernels.operators.test_top_mixture_items import assert_best, log_probabilities

pytestmark = pytest.mark.usefixtures("on_cpp")

# Up to 8 rows of one state, 5 of several, and 32 states of at least 16 columns go by GEMV, all else by GEMM: blocks of
# 32 states and of up to 96 items, in groups of 16 rows. bfloat16 takes pairs of columns from 32 columns and 1024 items
# on.
ROWS = [1, 2, 5, 6, 8, 9, 16, 17, 31, 33, 70]
STREAMS = [1, 2, 3, 4, 5, 33]
VOCABULARIES = [1, 2, 15, 24, 25, 96, 97, 1031, 3073]
DIMS = [1, 3, 15, 16, 17, 33, 64, 257]


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request, monkeypatch):
    monkeypatch.setattr(extension, "_instruction_set", request.param)
    return request.param


def integers(generator, largest, *shape):
    return torch.randint(-largest, largest + 1, shape, generator=generator).float()


def excluded_ids(data, generator, rows, vocabulary):
    """None, or lists with padding and repeated ids, shorter and longer than the table."""
    if not data.draw(st.booleans()):
        return None
    columns = data.draw(st.sampled_from([0, 1, vocabulary // 2, 2 * vocabulary]))
    return torch.randint(-1, vocabulary, (rows, columns), generator=generator)


def assert_same_counts(found, expected):
    for part, of_expected in zip(found, expected, strict=True):
        assert part.dtype == torch.int64
        assert torch.equal(part, of_expected)


def assert_exact(states, items, targets, exclude=None):
    found = target_rank(states, items, targets, exclude=exclude)
    with use_backend("reference"):
        assert_same_counts(found, target_rank(states.double(), items.double(), targets, exclude=exclude))


# ------------------------------------------------------------------------------------------ target_rank


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=50)
@given(data=st.data())
def test_ranks_of_any_size(dtype, data):
    rows, dim = data.draw(st.sampled_from(ROWS)), data.draw(st.sampled_from(DIMS))
    vocabulary = data.draw(st.sampled_from(VOCABULARIES))
    layout = data.draw(st.sampled_from(LAYOUTS))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    states = layout(integers(generator, 2, rows, dim).to(dtype))
    items = layout(integers(generator, 2, vocabulary, dim).to(dtype))
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    assert_exact(states, items, targets, excluded_ids(data, generator, rows, vocabulary))


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "streams"), [(1, 1), (1, 3), (5, 4), (7, 4), (9, 3), (40, 1), (40, 3)])
@pytest.mark.parametrize("dim", [15, 31, 50, 300])
def test_equal_vectors_tie_wherever_they_stand(dtype, rows, streams, dim):
    """Real numbers, whose sums round: each target has copies at all places that a block or a tile can give it."""
    generator = torch.Generator().manual_seed(rows)
    states = normal(generator, rows, streams, dim).to(dtype)
    items = normal(generator, 1200, dim).to(dtype)
    copies = torch.cat([torch.arange(110), torch.tensor([1050, 1111, 1199])])
    items[copies] = items[0].clone()
    targets = copies[torch.arange(rows) * 37 % len(copies)]
    if streams == 1:
        assert target_rank(states[:, 0], items, targets)[1].tolist() == [len(copies) - 1] * rows
    log_weights = torch.log_softmax(normal(generator, rows, streams), dim=1).to(dtype)
    _, equal = target_mixture_rank(states, log_weights, items, targets)
    assert equal.tolist() == [len(copies) - 1] * rows
    _, ids = top_mixture_items(states[:, :, :], log_weights, items[copies], 9)
    assert ids.tolist() == [list(range(9))] * rows


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("rows", [1, 2, 5, 20])
@pytest.mark.parametrize("temperature", [1.0, 0.02, 1e-6])
def test_targets_tie_with_their_copies_where_streams_disagree(rows, temperature):
    """Of the target's probability most streams add a part so small that it is subnormal, or none."""
    generator = torch.Generator().manual_seed(rows)
    states, items = normal(generator, rows, 4, 64).float(), normal(generator, 120, 64).float()
    items[60:] = items[:60].clone()
    log_weights = torch.log_softmax(normal(generator, rows, 4), dim=1).float()
    targets = torch.randint(120, (rows,), generator=generator)
    _, equal = target_mixture_rank(3 * states, log_weights, items, targets, temperature=temperature)
    assert equal.tolist() == [1] * rows
    _, equal = target_rank(2.0**-124 * states[:, 0], items, targets)  # some products are subnormal
    assert (equal >= 1).all()  # others may tie by what is lost


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize("dim", [15, 17, 40])
def test_a_score_that_is_not_finite_marks_its_row(value, rows, dim):
    generator = torch.Generator().manual_seed(0)
    for dtype, vocabulary in ((torch.float32, 99), (torch.bfloat16, 1100)):
        states, items = (integers(generator, 2, size, dim).to(dtype) for size in (rows, vocabulary))
        targets = torch.randint(vocabulary, (rows,), generator=generator)
        clean = target_rank(states, items, targets)
        assert (clean[0] >= 0).all()
        states[rows // 2, dim - 1] = value
        greater, equal = target_rank(states, items, targets)
        of_mixture = target_mixture_rank(states[:, None], states.new_zeros(rows, 1), items, targets)
        for row in range(rows):
            expected = (-1, -1) if row == rows // 2 else (int(clean[0][row]), int(clean[1][row]))
            assert (int(greater[row]), int(equal[row])) == expected
            assert (int(of_mixture[0][row]), int(of_mixture[1][row])) == expected
        for item in (0, 16, vocabulary - 1):  # excluded or not
            broken = items.clone()
            broken[item, 0] = value
            exclude = torch.full((rows, 1), item)
            for result in (
                *target_rank(states, broken, targets, exclude=exclude),
                *target_mixture_rank(states[:, None], states.new_zeros(rows, 1), broken, targets, exclude=exclude),
            ):
                assert result.tolist() == [-1] * rows


@pytest.mark.parametrize("rows", [1, 9])
def test_long_lists_of_excluded_items(rows):
    """Lists longer than the table, many ids many times, the target among them."""
    generator = torch.Generator().manual_seed(0)
    states, items = integers(generator, 3, rows, 16), integers(generator, 3, 50_000, 16)
    exclude = torch.randint(50_000, (rows, 150_000), generator=generator)
    exclude[:, ::7] = -1
    targets = torch.randint(50_000, (rows,), generator=generator)
    exclude[:, 5] = exclude[:, 90_000] = targets
    assert_exact(states, items, targets, exclude)
    everything = torch.arange(50_000).expand(rows, -1)
    for result in target_rank(states, items, targets, exclude=everything):
        assert result.tolist() == [0] * rows


@pytest.mark.usefixtures("threads_restored")
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (1, 16), (34, 1)])  # of several groups of 16 the first ones lead
def test_more_items_than_float32_counts(rows, dim):
    torch.set_num_threads(1)
    vocabulary = 2**24 + 1001
    items = torch.zeros(vocabulary, 1, dtype=torch.bfloat16)
    items[-1] = items[7] = -1
    states = torch.ones(rows, dim, dtype=torch.bfloat16)
    greater, equal = target_rank(states, items.expand(-1, dim), torch.full((rows,), 7))
    assert (greater.tolist(), equal.tolist()) == ([vocabulary - 2] * rows, [1] * rows)


@pytest.mark.parametrize("rows", [1024, 1025, 2100])
def test_more_rows_than_go_through_together(rows):
    generator = torch.Generator().manual_seed(0)
    states, items = integers(generator, 3, rows, 4), integers(generator, 3, 300, 4)
    targets = torch.randint(300, (rows,), generator=generator)
    assert_exact(states, items, targets, torch.randint(-1, 300, (rows, 11), generator=generator))


# ------------------------------------------------------------------------------------------ mixtures


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=40)
@given(data=st.data())
def test_equal_streams_are_one(dtype, data):
    """A mixture of one distribution with itself ranks as its scores, integers here: ids and counts are exact."""
    rows, dim = data.draw(st.sampled_from(ROWS)), data.draw(st.sampled_from(DIMS))
    streams, vocabulary = data.draw(st.sampled_from(STREAMS)), data.draw(st.sampled_from(VOCABULARIES))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    one = integers(generator, 2, rows, dim).to(dtype)
    states = one[:, None].expand(-1, streams, -1)
    items = data.draw(st.sampled_from(LAYOUTS))(integers(generator, 2, vocabulary, dim).to(dtype))
    log_weights = torch.log_softmax(normal(generator, rows, streams), dim=1).to(dtype)
    if streams > 1:
        log_weights[:, 1] = -math.inf
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    exclude = excluded_ids(data, generator, rows, vocabulary)
    # In float32 a log-probability of some tens tells apart what differs by 1 / 100.
    temperature = data.draw(st.sampled_from([0.5, 1.0, 20.0]))
    with use_backend("reference"):
        expected = target_rank(one.double(), items.double(), targets, exclude=exclude)
    found = target_mixture_rank(states, log_weights, items, targets, temperature=temperature, exclude=exclude)
    assert_same_counts(found, expected)
    k = min(data.draw(st.sampled_from([1, 20, 65, 1000])), vocabulary)
    options = {"exclude": exclude, "where": data.draw(st.sampled_from([None, *masks(vocabulary, generator, "cpu")]))}
    with use_backend("reference"):
        _, expected_ids = top_items(one.double(), items.double(), k, **options)
    scores, ids = top_mixture_items(states, log_weights, items, k, temperature=temperature, **options)
    assert scores.dtype == torch.float32
    assert torch.equal(ids, expected_ids)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "streams"), [(1, 4), (3, 4), (5, 5), (8, 5), (20, 3), (33, 4)])
@pytest.mark.parametrize(("temperature", "sweeps"), [(0.1, 1), (1.0, None), (100.0, 2)])
def test_one_sweep_and_two_find_the_best(dtype, rows, streams, temperature, sweeps):
    """Sharp distributions prove their best at once; of flat ones some rows take a second sweep."""
    generator = torch.Generator().manual_seed(streams)
    states = (3 * normal(generator, rows, streams, 32)).to(dtype)
    items = normal(generator, 3001, 32).to(dtype)
    items[1500:] = items[:1501].clone()  # every score twice
    log_weights = torch.log_softmax(normal(generator, rows, streams), dim=1).to(dtype)
    exclude = torch.cat([top_items(states[:, 0], items, 15)[1], torch.full((rows, 3), -1)], dim=1)
    truth = log_probabilities(states, log_weights, items, temperature)
    # Logits, up to 70 / temperature, are rounded in the units of their size.
    tolerance = 1e-4 * max(1.0, 1 / temperature)
    some = torch.rand(3001, generator=generator) < 0.7
    for excluded, where in ((None, None), (exclude, None), (None, some), (exclude, some)):
        scores, ids, swept_twice = top_mixture_items_cpu.forward_counted(
            states, log_weights, items, 20, temperature, excluded, where
        )
        left_out = excluded if where is None else with_forbidden(excluded, where, rows)
        assert_best((scores, ids), truth, 20, left_out, tolerance)
        if where is not None:
            listed = top_mixture_items(states, log_weights, items, 20, temperature=temperature, exclude=left_out)
            assert torch.equal(scores, listed[0])
            assert torch.equal(ids, listed[1])
        if sweeps is not None and (where is None or rows > 3):  # of few rows all may be proven by luck
            assert (swept_twice > 0) == (sweeps == 2)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("rows", [2, 20])
def test_a_second_sweep_returns_what_a_long_list_proves(rows):
    """The same scores and ids from lists that a second sweep completes and from those that hold all items."""
    generator = torch.Generator().manual_seed(0)
    states, items = normal(generator, rows, 8, 24).float(), normal(generator, 3000, 24).float()
    log_weights = torch.log_softmax(normal(generator, rows, 8), dim=1).float()
    long_scores, long_ids, swept_twice = top_mixture_items_cpu.forward_counted(
        states, log_weights, items, 1500, 100.0, None
    )
    assert swept_twice == 0  # 2 · 1500 + 32 is more than there are
    scores, ids, swept_twice = top_mixture_items_cpu.forward_counted(states, log_weights, items, 20, 100.0, None)
    assert swept_twice == rows
    assert torch.equal(ids, long_ids[:, :20])
    assert torch.equal(scores, long_scores[:, :20])


@pytest.mark.parametrize("rows", [1, 20])
def test_scores_that_are_not_finite(rows):
    """Nothing is passed over: all scores of such a row are NaN."""
    generator = torch.Generator().manual_seed(0)
    items = integers(generator, 2, 200, 16)
    log_weights = torch.zeros(rows, 2)
    exclude = torch.tensor([[1, 3, 1]]).expand(rows, -1)
    for value in (math.nan, math.inf):
        states = integers(generator, 2, rows, 2, 16)
        states[-1, 1, 3] = value
        scores, ids = top_mixture_items(states, log_weights, items, 4, exclude=exclude)
        assert scores[-1].isnan().all()
        assert ids[-1].tolist() == [0, 2, 4, 5]
        where = torch.arange(200) % 5 > 0
        _, ids = top_mixture_items(states, log_weights, items, 4, exclude=exclude, where=where)
        assert ids[-1].tolist() == [2, 4, 6, 7]
        assert scores[:-1].isfinite().all()


def test_no_weight_at_all_leaves_no_candidates():
    scores, ids = top_mixture_items(torch.ones(2, 2, 16), torch.full((2, 2), -math.inf), torch.ones(50, 16), 3)
    assert (scores == -math.inf).all()
    assert (ids == -1).all()


@pytest.mark.usefixtures("threads_restored")
@pytest.mark.parametrize(("rows", "vocabulary", "dim"), [(2, 200_003, 17), (100, 5003, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_changes_no_bit(rows, vocabulary, dim, dtype):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(rows, 3, dim, generator=generator).to(dtype)
    items = torch.randn(vocabulary, dim, generator=generator).to(dtype)
    items[::3] = items[1]  # ties across all blocks
    log_weights = torch.log_softmax(torch.randn(rows, 3, generator=generator), dim=1).to(dtype)
    exclude = torch.randint(vocabulary, (rows, 50), generator=generator)
    where = torch.rand(vocabulary, generator=generator) < 0.5
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(
            [
                *target_rank(states[:, 0], items, targets, exclude=exclude),
                *target_mixture_rank(states, log_weights, items, targets, exclude=exclude),
                *top_mixture_items(states, log_weights, items, 20, exclude=exclude),
                *top_mixture_items(states, log_weights, items, 20, temperature=30.0, exclude=exclude),
                *top_mixture_items(states, log_weights, items, 20, temperature=30.0, where=where),
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0], other, strict=True))


# ------------------------------------------------------------------------------------------ registration


def forward_ops():
    states, items, targets = torch.randn(2, 3), torch.randn(7, 3), torch.tensor([1, 6])
    mixture, log_weights = torch.randn(2, 4, 3), torch.log_softmax(torch.randn(2, 4), dim=1)
    for exclude in (None, torch.tensor([[3, -1], [0, 1]])):
        yield torch.ops.plr_kernels.target_rank_forward, (states, items, targets, exclude, "cpp")
        arguments = (mixture, log_weights, items, targets, 0.7, exclude, "cpp")
        yield torch.ops.plr_kernels.target_mixture_rank_forward, arguments
        yield torch.ops.plr_kernels.top_mixture_items_forward, (mixture, log_weights, items, 3, 0.7, exclude, "cpp")


def test_opcheck():
    for op, arguments in forward_ops():
        torch.library.opcheck(op.default, arguments)
        if op is torch.ops.plr_kernels.top_mixture_items_forward:
            torch.library.opcheck(op.default, (*arguments, torch.arange(7) > 2))


def test_indices_are_checked_without_the_public_checks():
    for op, arguments in forward_ops():
        for wrong in (7, -2):
            arguments = [*arguments[:-2], torch.tensor([[0, wrong], [1, 1]]), "cpp"]
            with pytest.raises(ValueError, match=rf"exclude must be in \[0, V\), or -1 .* \(V=7\), found {wrong}"):
                op(*arguments)
            if "rank" in str(op):
                of_targets = 2 if len(arguments) == 5 else 3
                with pytest.raises(ValueError, match=rf"targets must be in \[0, V\) \(V=7\), found {wrong}"):
                    op(*arguments[:of_targets], torch.tensor([0, wrong]), *arguments[of_targets + 1 : -2], None, "cpp")


def test_compiles_whole():
    mixture, items, targets = torch.randn(5, 2, 20), torch.randn(300, 20), torch.arange(5)
    log_weights, exclude = torch.zeros(5, 2), torch.randint(300, (5, 9))

    def everything(mixture, log_weights, items):
        return (
            *target_rank(mixture[:, 0], items, targets, exclude=exclude),
            *target_mixture_rank(mixture, log_weights, items, targets, exclude=exclude),
            *top_mixture_items(mixture, log_weights, items, 7, exclude=exclude),
        )

    found = torch.compile(everything, fullgraph=True)(mixture, log_weights, items)
    for part, expected in zip(found, everything(mixture, log_weights, items), strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("_default_dtype_restored")
def test_the_default_dtype_changes_nothing(default):
    mixture, items, targets = torch.randn(5, 2, 20), torch.randn(300, 20), torch.arange(5)
    log_weights = torch.zeros(5, 2)

    def everything():
        return (
            *target_rank(mixture[:, 0], items, targets),
            *target_mixture_rank(mixture, log_weights, items, targets),
            *top_mixture_items(mixture, log_weights, items, 7),
        )

    expected = everything()
    torch.set_default_dtype(default)
    for result, same in zip(everything(), expected, strict=True):
        assert result.dtype == same.dtype
        assert torch.equal(result, same)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_packed_mixtures_do_not_depend_on_their_batch(name, temperature):
    """Alone, among others and on several threads a row has the same bits, also where only some rows are swept again."""
    generator = torch.Generator().manual_seed(3)
    states, items = normal(generator, 40, 3, 32).float(), normal(generator, 3001, 32).float()
    states[::3] = states[::3, :1]  # equal streams prove their best, others of a flat mixture do not
    log_weights = torch.log_softmax(normal(generator, 40, 3), dim=1).float()
    exclude = torch.randint(-1, 3001, (40, 4), generator=generator)
    packed = extension._cpp.PackedItems(name, extension.as_matrix(items), False)

    def ranked(rows, threads=1):
        chosen, weights, left_out = states[rows].flatten(0, 1).contiguous(), log_weights[rows], exclude[rows]
        scores, ids = torch.empty(len(weights), 20), torch.empty(len(weights), 20, dtype=torch.int64)
        packed.top(
            *(threads, extension.as_matrix(chosen), weights.data_ptr(), 3, 20, temperature),
            *(left_out.data_ptr(), left_out.shape[1], 0, 0, scores.data_ptr(), ids.data_ptr()),
        )
        return scores, ids

    together = ranked(slice(None))
    assert_best(together, log_probabilities(states, log_weights, items, temperature), 20, exclude, 1e-4)
    alone = [torch.cat(parts) for parts in zip(*(ranked(row) for row in torch.arange(40).split(1)), strict=True)]
    for others in (alone, ranked(slice(None), threads=2)):
        for one, other in zip(together, others, strict=True):
            assert torch.equal(one, other)
