"""top_items in C++: every instruction set, every way its blocks can end, lists cut back often, any number of threads.

Small integers make every sum exact, so that ids must equal those of the reference in float64, ties included.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from plr_kernels import extension, top_items, use_backend
from tests.plr_kernels.cpu.test_cpp import INSTRUCTION_SETS
from tests.plr_kernels.harness import DTYPES, LAYOUTS
from tests.plr_kernels.operators.test_top_items import masks

pytestmark = pytest.mark.usefixtures("on_cpp")

# Up to 8 rows of at least 16 columns read the items once with dot products; all else goes through blocks of products,
# 32 rows wide and of up to 96 items. Those of bfloat16 take pairs of columns from 32 columns and 1024 items on.
ROWS = [1, 2, 8, 9, 16, 17, 31, 32, 33, 70]
VOCABULARIES = [1, 2, 15, 23, 24, 25, 95, 96, 97, 1031, 3073]
DIMS = [1, 3, 15, 16, 17, 31, 33, 64, 255, 256, 257, 520]
# Lists are ranked by counting up to 64, and with nth_element beyond.
LENGTHS = [1, 2, 20, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000]


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request, monkeypatch):
    monkeypatch.setattr(extension, "_instruction_set", request.param)
    return request.param


def integers(generator, largest, *shape):
    return torch.randint(-largest, largest + 1, shape, generator=generator).float()


def assert_exact(states, items, k, exclude=None, where=None):
    """The very scores and ids of the reference in float64; fails where a score is not the same number."""
    options = {"exclude": exclude, "where": where}
    scores, ids = top_items(states, items, k, **options)
    with use_backend("reference"):
        expected_scores, expected_ids = top_items(states.double(), items.double(), k, **options)
    assert scores.dtype == torch.float32
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(scores.double(), expected_scores, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=60)
@given(data=st.data())
def test_any_size(dtype, data):
    rows, dim = data.draw(st.sampled_from(ROWS)), data.draw(st.sampled_from(DIMS))
    vocabulary = data.draw(st.sampled_from(VOCABULARIES))
    k = min(data.draw(st.sampled_from(LENGTHS)), vocabulary)
    layout = data.draw(st.sampled_from(LAYOUTS))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    states = layout(integers(generator, 2, rows, dim).to(dtype))
    items = layout(integers(generator, 2, vocabulary, dim).to(dtype))
    exclude = None
    if data.draw(st.booleans()):
        columns = data.draw(st.sampled_from([0, 1, vocabulary // 2, 2 * vocabulary]))
        exclude = torch.randint(-1, vocabulary, (rows, columns), generator=generator)
    where = data.draw(st.sampled_from([None, *masks(vocabulary, generator, "cpu")]))
    assert_exact(states, items, k, exclude, where)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 9, 40])
@pytest.mark.parametrize(("vocabulary", "dim"), [(1031, 17), (3073, 64)])
def test_where_changes_no_bit_of_what_is_left(dtype, rows, vocabulary, dim):
    """Real numbers, whose sums round: the scores and the order of the ranking of all."""
    generator = torch.Generator().manual_seed(rows)
    states, items = (torch.randn(size, dim, generator=generator).to(dtype) for size in (rows, vocabulary))
    all_scores, all_ids = top_items(states, items, vocabulary)
    for where in masks(vocabulary, generator, "cpu"):
        scores, ids = top_items(states, items, 20, where=where)
        for row in range(rows):
            left = where[all_ids[row]]
            found = min(20, int(left.sum()))
            assert torch.equal(ids[row, :found], all_ids[row, left][:20])
            assert torch.equal(scores[row, :found], all_scores[row, left][:20])
            assert ids[row, found:].tolist() == [-1] * (20 - found)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("k", LENGTHS)
@pytest.mark.parametrize("rows", [3, 40])
def test_any_order_of_scores(rows, k):
    """Ascending scores all enter the list, descending ones never do, equal ones only while it is not full."""
    position = torch.arange(4000).float()
    orders = (position, -position, position // 50, -(position // 50), (position % 7), torch.zeros(4000))
    for order in orders:
        items = torch.zeros(4000, 16)
        items[:, 5] = order
        states = torch.zeros(rows, 16)
        states[:, 5] = torch.arange(rows) - 1.0
        assert_exact(states, items, k)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("skipped", [0, 1])
@pytest.mark.parametrize("dim", [32, 33, 64])
def test_rows_of_a_wider_matrix(dim, skipped):
    """Read where they are, or, where a pair of columns would not be at an address for pairs, copied."""
    generator = torch.Generator().manual_seed(0)
    for stride in (dim + 2, dim + 3):
        wide = torch.full((1100, stride), torch.nan, dtype=torch.bfloat16)
        items = wide[:, skipped : skipped + dim]
        items.copy_(integers(generator, 2, 1100, dim))
        assert_exact(integers(generator, 2, 9, dim).bfloat16(), items, 20)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize(("dtype", "vocabulary"), [(torch.float32, 500), (torch.bfloat16, 1500)], ids=str)
@pytest.mark.parametrize("dim", [15, 16, 17, 31, 33, 300])
@pytest.mark.parametrize("rows", [1, 5, 20])
def test_not_a_number_and_infinity(rows, dim, dtype, vocabulary):
    """NaN is above all as in torch.sort; what scores -inf is no candidate."""
    generator = torch.Generator().manual_seed(0)
    states, items = (integers(generator, 2, size, dim).to(dtype) for size in (rows, vocabulary))
    states[0] = states[0].abs() + 1  # of all infinite items it makes infinite scores
    for start, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        items[torch.arange(start, 500, 50), torch.arange(10) % dim] = value
        items[start + 7, -1] = value
    exclude = torch.tensor([[0, 100, 1, -1]]).expand(rows, 4)
    for k in (1, 5, 20, 100, 500):
        assert_exact(states, items, k)
        assert_exact(states, items, k, exclude)
        assert_exact(states, items, k, exclude, torch.arange(vocabulary) % 50 > 1)
    items = torch.full((vocabulary - 100, dim), torch.nan, dtype=dtype)  # more of them than fit into a list
    assert_exact(states, items, 3)
    states[-1] = torch.inf
    assert_exact(states, integers(generator, 2, vocabulary, dim).to(dtype), 60)
    for column in (0, 5, dim - 1):
        states = torch.ones(rows, dim, dtype=dtype)
        states[0, column] = torch.inf
        assert_exact(states, integers(generator, 2, vocabulary, dim).to(dtype), 300)


@pytest.mark.usefixtures("instruction_set")
def test_minus_zero_equals_zero():
    """A product too small for float32 becomes 0 or -0: a tie."""
    items = torch.tensor([-1e-30, 1e-30]).repeat(100)[:, None]
    for k in (3, 70):
        scores, ids = top_items(torch.full((1, 1), 1e-30), items, k)
        assert ids.tolist() == [list(range(k))]
        assert not scores.any()


@pytest.mark.parametrize("rows", [1, 9])
def test_long_lists_of_excluded_items(rows):
    """Lists longer than the table, all but a few of its items, some of them many times."""
    generator = torch.Generator().manual_seed(0)
    states, items = integers(generator, 3, rows, 16), integers(generator, 3, 50_000, 16)
    exclude = torch.randint(50_000, (rows, 150_000), generator=generator)
    exclude[:, ::7] = -1
    assert_exact(states, items, 30, exclude)
    left = torch.randperm(50_000, generator=generator)[:20]
    kept = torch.ones(50_000, dtype=torch.bool)
    kept[left] = False
    assert_exact(states, items, 30, kept.nonzero().T.expand(rows, -1))


def test_each_row_has_its_own_exclusions():
    """The best items of one row are excluded for all rows but that one."""
    rows = 70
    items = torch.zeros(2000, 16)
    items[:, 0] = torch.arange(2000)
    exclude = torch.full((rows, 3), -1)
    exclude[::2, 1] = 1999
    exclude[::3, 2] = 1998
    _, ids = top_items(torch.ones(rows, 16), items, 1, exclude=exclude)
    assert ids[:, 0].tolist() == [1999 if row % 2 else 1998 if row % 3 else 1997 for row in range(rows)]


@pytest.mark.parametrize(
    ("rows", "vocabulary", "k"), [(1024, 300, 5), (1025, 300, 5), (2100, 97, 97), (70, 9001, 9000)]
)
def test_more_rows_than_go_through_together(rows, vocabulary, k):
    generator = torch.Generator().manual_seed(0)
    states, items = integers(generator, 3, rows, 4), integers(generator, 3, vocabulary, 4)
    assert_exact(states, items, k, torch.randint(-1, vocabulary, (rows, 11), generator=generator))


def test_millions_of_items():
    items = torch.zeros(3_000_001, 16, dtype=torch.bfloat16)
    items[[2_999_999, 17, 3_000_000, 1_500_000], 0] = torch.tensor([1.0, 2.0, 2.0, 3.0]).bfloat16()
    for rows in (1, 9):
        scores, ids = top_items(torch.ones(rows, 16, dtype=torch.bfloat16), items, 5)
        assert ids.tolist() == [[1_500_000, 17, 3_000_000, 2_999_999, 0]] * rows
        assert scores.tolist() == [[3.0, 2.0, 2.0, 1.0, 0.0]] * rows


@pytest.mark.parametrize(("rows", "vocabulary", "dim"), [(1, 200_003, 17), (300, 5003, 40), (40, 30_011, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("threads_restored")
def test_the_number_of_threads_changes_no_bit(rows, vocabulary, dim, dtype):
    generator = torch.Generator().manual_seed(0)
    states, items = (torch.randn(size, dim, generator=generator).to(dtype) for size in (rows, vocabulary))
    items[::3] = items[1]  # ties across all blocks
    options = {"exclude": torch.randint(vocabulary, (rows, 50), generator=generator)}
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        found = [top_items(states, items, k, **options) for k in (1, 30, 200)]
        found.append(top_items(states, items, 30, where=torch.arange(vocabulary) % 5 > 0, **options))
        results.append([result for each in found for result in each])
    for other in results[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0], other, strict=True))


def test_excluded_ids_are_checked_without_the_public_checks():
    for wrong in (7, -2):
        with pytest.raises(ValueError, match=rf"exclude must be in \[0, V\), or -1 as padding \(V=7\), found {wrong}"):
            torch.ops.plr_kernels.top_items_forward(
                torch.randn(1, 3), torch.randn(7, 3), 2, torch.tensor([[0, wrong]]), "cpp"
            )


def test_more_items_than_ids_are_kept_for():
    with pytest.raises(ValueError, match=r"items must have at most 2\*\*32 rows on the cpp backend, found 4294967297"):
        top_items(torch.ones(1, 1), torch.ones(1, 1).expand(2**32 + 1, 1), 1)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("_default_dtype_restored")
def test_the_default_dtype_changes_nothing(default):
    states, items = torch.randn(5, 20), torch.randn(300, 20)
    expected = top_items(states, items, 3)
    torch.set_default_dtype(default)
    for result, same in zip(top_items(states, items, 3), expected, strict=True):
        assert result.dtype == same.dtype
        assert torch.equal(result, same)


def test_opcheck():
    for exclude in (None, torch.tensor([[3, -1], [0, 1]])):
        arguments = (torch.randn(2, 3), torch.randn(7, 3), 3, exclude, "cpp")
        torch.library.opcheck(torch.ops.plr_kernels.top_items_forward.default, arguments)
        torch.library.opcheck(torch.ops.plr_kernels.top_items_forward.default, (*arguments, torch.arange(7) > 2))


def test_compiles_with_inductor():
    states, items = torch.randn(5, 20), torch.randn(300, 20)
    exclude = torch.randint(300, (5, 9))
    scores, ids = torch.compile(top_items, fullgraph=True)(states, items, 7, exclude=exclude)
    expected_scores, expected_ids = top_items(states, items, 7, exclude=exclude)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(ids, expected_ids)
    where = torch.arange(300) % 7 > 0
    scores, ids = torch.compile(top_items, fullgraph=True)(states, items, 7, exclude=exclude, where=where)
    expected_scores, expected_ids = top_items(states, items, 7, exclude=exclude, where=where)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(ids, expected_ids)
