"""stream_attention on the C++ backend: every way its tiles can end, memory as models hold it, the mask of dropout."""

from __future__ import annotations

import itertools
import math
import mmap

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from plr_kernels import extension, stream_attention, use_backend
from plr_kernels.stream_attention import cpu, operator
from plr_kernels.stream_attention.keep_mask import attention_keep_mask
from tests.plr_kernels.cpu.test_cpp import INSTRUCTION_SETS
from tests.plr_kernels.harness import (
    DTYPES,
    STREAM_ATTENTION,
    STREAM_ATTENTION_PER_QUERY,
    Case,
    assert_accurate,
    evaluate,
    make_case,
)

pytestmark = pytest.mark.usefixtures("on_cpp")

# Newer versions of PyTorch have it.
READS_TENSORS = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
on_every_instruction_set = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)


@pytest.fixture(autouse=True)
def _instruction_set(request, monkeypatch):
    if "instruction_set" in request.fixturenames:
        monkeypatch.setattr(extension, "_instruction_set", request.getfixturevalue("instruction_set"))


def plain_tensors(dtype=torch.float32, **sizes):
    return [*make_case(STREAM_ATTENTION, STREAM_ATTENTION.small | sizes, dtype=dtype).tensors.values()]


def check(dtype=torch.float32, **sizes):
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large | {"batch": 2} | sizes, dtype=dtype)
    assert_accurate(evaluate(stream_attention, case), STREAM_ATTENTION, case)


# ------------------------------------------------------------------------------------------ sizes


@on_every_instruction_set
@pytest.mark.parametrize("streams", [1, 2, 3, 4, 5, 6, 7, 8, 9, 33])
def test_any_number_of_streams(instruction_set, streams):
    check(streams=streams, prefix=21, suffix=3, dim=20)


@on_every_instruction_set
@pytest.mark.parametrize("streams", [3, 20])
@pytest.mark.parametrize("suffix", [0, 2])
def test_the_sums_of_the_softmax(instruction_set, streams, suffix):
    """log2 of them stands beside the output: -inf where a query has nothing to attend to."""
    tensors = plain_tensors(batch=2, streams=streams, prefix=9, suffix=suffix)
    lengths = torch.arange(2 * streams).reshape(2, streams) % 10
    _, sums = cpu.forward(tuple(tensors), lengths, 0.25, 0.0, None)
    query, prefix_key, _, stream_key, _ = (tensor.double() for tensor in tensors)
    seen = torch.arange(9) < lengths[:, None, :, None]
    prefix_scores = (query @ prefix_key.mT).masked_fill(~seen, -torch.inf)
    stream_scores = (stream_key @ query.unsqueeze(-1)).squeeze(-1)
    expected = (torch.cat([prefix_scores, stream_scores], dim=-1) * 0.25).logsumexp(dim=-1) / math.log(2)
    assert (expected == -torch.inf).any() == (suffix == 0)
    # A few roundings of numbers of about this size: scores of some units, and a logarithm.
    torch.testing.assert_close(sums.double(), expected, rtol=1e-6, atol=4e-6)


@on_every_instruction_set
@pytest.mark.parametrize("prefix", [0, 1, 4, 15, 16, 17, 31, 63, 64, 65, 80, 200])
def test_any_prefix(instruction_set, prefix):
    check(prefix=prefix, lengths=None, dim=19)
    check(prefix=prefix, dim=19, suffix=0)


@on_every_instruction_set
@pytest.mark.parametrize("dim", [128, 144, 260])
def test_wide_rows(instruction_set, dim):
    check(streams=5, prefix=70, suffix=2, dim=dim)
    check(streams=3, prefix=9, suffix=0, dim=dim)


@on_every_instruction_set
@pytest.mark.parametrize("suffix", [0, 1, 2, 3, 15, 16, 17, 40])
def test_any_number_of_suffix_entries(instruction_set, suffix):
    check(suffix=suffix, prefix=7, dim=19)
    check(suffix=suffix, prefix=0, lengths=None, dim=19, streams=3)


@on_every_instruction_set
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 3, 8, 16, 31, 48, 64, 80, 112, 128, 300])
def test_any_dimension(instruction_set, dtype, dim):
    check(dtype, dim=dim, prefix=19, suffix=2)


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_more_pairs_than_tasks(batch):
    check(batch=batch, heads=3, prefix=11, dim=32)


# ------------------------------------------------------------------------------------------ memory


def as_a_model_holds_it(case):
    """Heads beside each other in a row, keys beside values, the streams' entries cut from a longer cache."""
    heads, dim = case.tensors["query"].shape[1::2]

    def projected(key, value):
        both = torch.cat([key.transpose(1, 2).flatten(2), value.transpose(1, 2).flatten(2)], dim=-1)
        return [part.unflatten(-1, (heads, dim)).transpose(1, 2) for part in both.chunk(2, dim=-1)]

    def cut(entries):
        cache = entries.new_full((*entries.shape[:3], entries.shape[3] + 2, dim), torch.nan)
        cache[:, :, :, 1:-1] = entries
        return cache[:, :, :, 1:-1]

    tensors = dict(case.tensors)
    tensors["query"] = tensors["query"].transpose(1, 2).contiguous().transpose(1, 2)
    tensors["prefix_key"], tensors["prefix_value"] = projected(tensors["prefix_key"], tensors["prefix_value"])
    tensors["stream_key"], tensors["stream_value"] = cut(tensors["stream_key"]), cut(tensors["stream_value"])
    assert not any(tensor.is_contiguous() for tensor in tensors.values())
    return Case(tensors, case.options)


@pytest.fixture(params=[True, False], ids=["tensors read", "tensors described"])
def tensors_are_read(request, monkeypatch):
    """Both ways in which the extension gets to know tensors; the first needs a new PyTorch."""
    if not request.param:
        monkeypatch.setattr(cpu._cpp, "attention_operands", lambda *_: None)
    elif not READS_TENSORS:
        pytest.skip("this PyTorch has no interface to read tensors by")
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_memory_of_a_model_is_read_in_place(monkeypatch, tensors_are_read, dtype):
    plain = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large, dtype=dtype)
    case = as_a_model_holds_it(plain)
    addresses = []
    forward, backward = cpu._cpp.stream_attention_forward, cpu._cpp.stream_attention_backward

    def recorded_forward(*arguments):
        addresses.extend(arguments[2].addresses)
        forward(*arguments)

    def recorded_backward(*arguments):
        addresses.extend([*arguments[2].addresses, arguments[-2][0]])
        backward(*arguments)

    monkeypatch.setattr(cpu._cpp, "stream_attention_forward", recorded_forward)
    monkeypatch.setattr(cpu._cpp, "stream_attention_backward", recorded_backward)
    leaves = [tensor.detach().requires_grad_() for tensor in case.tensors.values()]
    output = stream_attention(*leaves, **case.options)
    output_gradient = torch.randn_like(output).transpose(0, 2).contiguous().transpose(0, 2)
    gradients = torch.autograd.grad(output, leaves, output_gradient)
    tensors = [tensor.data_ptr() for tensor in case.tensors.values()]
    assert addresses == [*tensors, *tensors, output_gradient.data_ptr()]

    leaves = [tensor.detach().requires_grad_() for tensor in plain.tensors.values()]
    expected = stream_attention(*leaves, **plain.options)
    assert torch.equal(output, expected)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, leaves, output_gradient), strict=True):
        assert torch.equal(mine, theirs)


def test_the_extension_reads_tensors(monkeypatch):
    """Where PyTorch lets it: then the checks in Python have nothing to do."""
    assert cpu.takes(*plain_tensors()) == READS_TENSORS
    if not READS_TENSORS:
        pytest.skip("this PyTorch has no interface to read tensors by")
    parameters = [torch.nn.Parameter(tensor) for tensor in plain_tensors(torch.bfloat16)]
    assert cpu.takes(*parameters)
    assert cpu.takes(*plain_tensors(torch.float16, prefix=0, suffix=0))
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.small)
    expected = stream_attention(**case.tensors, **case.options)
    monkeypatch.setattr(operator, "floating_inputs", None)
    assert torch.equal(stream_attention(**case.tensors, **case.options), expected)
    with pytest.raises(TypeError, match="NoneType"), torch.autocast("cpu", torch.bfloat16):
        stream_attention(**case.tensors, **case.options)


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (0, lambda tensor: tensor.double()),
        (1, lambda tensor: tensor.half()),
        (0, lambda tensor: tensor[..., 0]),
        (0, lambda tensor: tensor[:, :, :0]),
        (1, lambda tensor: tensor[:0]),
        (2, lambda tensor: tensor[:, :, 1:]),
        (3, lambda tensor: tensor[..., 1:]),
        (4, lambda tensor: tensor[:, :, :, 1:]),
        (4, lambda tensor: tensor[:, :, 0]),
        (2, lambda tensor: tensor.mT.contiguous().mT),
        (1, lambda tensor: tensor.to_sparse()),
        (1, lambda tensor: tensor.to("meta")),
        (3, lambda tensor: tensor.as_subclass(Subclass)),
        (0, lambda tensor: tensor.tolist()),
        (4, lambda tensor: None),
    ],
)
def test_what_the_extension_does_not_read(index, change):
    tensors = plain_tensors()
    tensors[index] = change(tensors[index])
    assert not cpu.takes(*tensors)


def test_gradient_of_the_output_in_any_layout():
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large)
    leaves = [tensor.requires_grad_() for tensor in case.tensors.values()]
    output = stream_attention(*leaves, **case.options)
    ones = torch.ones_like(output)
    strided = torch.stack([ones, torch.full_like(ones, torch.nan)], dim=-1)[..., 0]
    expected = torch.autograd.grad(output, leaves, ones, retain_graph=True)
    for layout in (torch.ones(()).expand_as(output), strided, ones.transpose(0, 3).contiguous().transpose(0, 3)):
        for mine, theirs in zip(torch.autograd.grad(output, leaves, layout, retain_graph=True), expected, strict=True):
            assert torch.equal(mine, theirs)


@on_every_instruction_set
@pytest.mark.parametrize("dim", [256, 272, 250])
def test_gradients_larger_than_the_caches(instruction_set, dim):
    """Those of all users are written past the caches, where rows are whole cache lines; those of a half are not."""
    sizes = {"batch": 8, "heads": 4, "streams": 3, "prefix": 270, "suffix": 2, "dim": dim}
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large | sizes | {"dropout_p": 0.0})
    lengths = case.options.pop("prefix_lengths")
    assert 2 * case.tensors["prefix_key"].nbytes > 16 * 2**20

    def gradients(users):
        leaves = [tensor[users].contiguous().requires_grad_() for tensor in case.tensors.values()]
        output = stream_attention(*leaves, **case.options, prefix_lengths=lengths[users])
        return torch.autograd.grad(output, leaves, case.tensors["query"][users])

    halves = zip(gradients(slice(0, 4)), gradients(slice(4, 8)), strict=True)
    for mine, both in zip(gradients(slice(0, 8)), halves, strict=True):
        assert torch.equal(mine, torch.cat(both))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_that_are_described(monkeypatch, dtype):
    """As to the extension where PyTorch does not let it read them."""
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large, dtype=dtype)
    expected = evaluate(stream_attention, case)
    monkeypatch.setattr(cpu._cpp, "attention_operands", lambda *_: None)
    for name, result in evaluate(stream_attention, case).items():
        assert torch.equal(result, expected[name]), name


def test_lengths_in_any_layout():
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large)
    expected = stream_attention(**case.tensors, **case.options)
    lengths = case.options.pop("prefix_lengths")
    for layout in (lengths.to(torch.int32), torch.stack([lengths, -lengths], dim=-1)[:, 0]):
        output = stream_attention(**case.tensors, **case.options, prefix_lengths=layout)
        assert torch.equal(output, expected)


def test_offsets_beyond_32_bits():
    """Two prefixes 2^31 numbers apart, in memory that is not there until it is written to."""
    apart, dim = 2**31 + 64, 16
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (apart + 10 * dim), flags=flags), dtype=torch.float16)
    far = memory.as_strided((2, 1, 5, dim), (apart, 0, dim, 1))
    case = make_case(
        STREAM_ATTENTION,
        STREAM_ATTENTION.large | {"batch": 2, "heads": 1, "prefix": 5, "dim": dim, "lengths": None},
        dtype=torch.float16,
    )
    far.copy_(case.tensors["prefix_key"])
    for name in ("prefix_key", "prefix_value"):
        case.tensors[name] = far
    assert_accurate(evaluate(stream_attention, case), STREAM_ATTENTION, case)


# ------------------------------------------------------------------------------------------ a length per query


def check_per_query(dtype=torch.float32, **sizes):
    sizes = STREAM_ATTENTION_PER_QUERY.large | {"batch": 2, "ascending": False} | sizes
    case = make_case(STREAM_ATTENTION_PER_QUERY, sizes, dtype=dtype)
    assert_accurate(evaluate(stream_attention, case), STREAM_ATTENTION_PER_QUERY, case)


@on_every_instruction_set
@pytest.mark.parametrize("streams", [1, 5, 15, 16, 17, 31, 32, 33, 64, 71])
@pytest.mark.parametrize("ascending", [False, True])
def test_a_length_per_query(instruction_set, streams, ascending):
    check_per_query(streams=streams, prefix=50, suffix=1, dim=20, ascending=ascending)


@on_every_instruction_set
@pytest.mark.parametrize("prefix", [0, 1, 15, 16, 17, 48, 49, 64, 65, 200])
def test_any_prefix_per_query(instruction_set, prefix):
    check_per_query(streams=37, prefix=prefix, suffix=0, dim=19)


@on_every_instruction_set
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 3, 16, 31, 64, 130])
def test_any_dimension_per_query(instruction_set, dtype, dim):
    check_per_query(dtype, streams=35, prefix=40, suffix=2, dim=dim)


@on_every_instruction_set
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("streams", [1, 4, 16, 17, 40, 70])
def test_equal_lengths_are_a_length_for_all(instruction_set, dtype, streams):
    """To the bit, however many queries are computed together."""
    sizes = STREAM_ATTENTION.large | {"streams": streams, "prefix": 37, "suffix": 2, "dim": 20}
    case = make_case(STREAM_ATTENTION, sizes, dtype=dtype)
    expected = evaluate(stream_attention, case)
    case.options["prefix_lengths"] = case.options["prefix_lengths"][:, None].expand(-1, streams)
    for name, result in evaluate(stream_attention, case).items():
        assert torch.equal(result, expected[name]), name


@on_every_instruction_set
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_a_query_does_not_depend_on_its_neighbours(instruction_set, dropout_p):
    """Its output and its gradient have the same bits, whatever the lengths of those that are computed with it."""
    sizes = STREAM_ATTENTION_PER_QUERY.large | {"streams": 40, "prefix": 70, "dropout_p": dropout_p}
    case = make_case(STREAM_ATTENTION_PER_QUERY, sizes)
    own = ["query", "stream_key", "stream_value"]
    expected = evaluate(stream_attention, case, own)
    lengths = case.options["prefix_lengths"]
    for kept in (0, 7, 20, 39):
        case.options["prefix_lengths"] = torch.full_like(lengths, 70)
        case.options["prefix_lengths"][:, kept] = lengths[:, kept]
        for name, result in evaluate(stream_attention, case, own).items():
            assert torch.equal(result[:, :, kept], expected[name][:, :, kept]), name


@on_every_instruction_set
@pytest.mark.parametrize("streams", [3, 20, 70])
def test_what_no_query_sees_reaches_nothing(instruction_set, streams):
    sizes = STREAM_ATTENTION_PER_QUERY.large | {"streams": streams, "prefix": 40, "suffix": 0}
    case = make_case(STREAM_ATTENTION_PER_QUERY, sizes)
    case.options["prefix_lengths"] = case.options["prefix_lengths"].clamp(max=23)
    case.options["prefix_lengths"][:, ::4] = 0
    case.options["prefix_lengths"][2] = 0
    clean = evaluate(stream_attention, case)
    assert not clean["output"][:, :, ::4].any()
    for b, longest in enumerate(case.options["prefix_lengths"].amax(dim=1).tolist()):
        for name in ("prefix_key", "prefix_value"):
            assert not clean[f"gradient of {name}"][b, :, longest:].any()
            case.tensors[name][b, :, longest:] = torch.nan
    for name, result in evaluate(stream_attention, case).items():
        assert torch.equal(result, clean[name]), name


@on_every_instruction_set
def test_all_queries_of_long_prefixes_per_query(instruction_set):
    """Gradients that are written past the caches."""
    sizes = {"batch": 8, "heads": 4, "streams": 20, "prefix": 270, "suffix": 2, "dim": 256, "dropout_p": 0.0}
    case = make_case(STREAM_ATTENTION_PER_QUERY, STREAM_ATTENTION_PER_QUERY.large | sizes)
    lengths = case.options.pop("prefix_lengths")

    def gradients(users):
        leaves = [tensor[users].contiguous().requires_grad_() for tensor in case.tensors.values()]
        output = stream_attention(*leaves, **case.options, prefix_lengths=lengths[users])
        return torch.autograd.grad(output, leaves, case.tensors["query"][users])

    halves = zip(gradients(slice(0, 2)), gradients(slice(2, 8)), strict=True)
    for mine, both in zip(gradients(slice(0, 8)), halves, strict=True):
        assert torch.equal(mine, torch.cat(both))


# ------------------------------------------------------------------------------------------ dropout


@on_every_instruction_set
@pytest.mark.parametrize("seed", [0, 1, -1, 0x123456789ABCDEF, -(2**63)])
@pytest.mark.parametrize("sizes", [(70, 9), (3, 2), (0, 5), (16, 0)], ids=str)
@pytest.mark.parametrize("streams", [5, 39])
def test_the_mask_is_that_of_the_definition(instruction_set, streams, seed, sizes):
    """Equal scores, and values that are the columns of a unit matrix: the output is the probabilities themselves."""
    prefix, suffix = sizes
    batch, heads, entries = 2, 3, prefix + suffix
    unit = torch.eye(entries)
    zeros = torch.zeros(batch, heads, streams, entries)
    output = stream_attention(
        zeros,
        torch.zeros(batch, heads, prefix, entries),
        unit[:prefix].expand(batch, heads, -1, -1),
        torch.zeros(batch, heads, streams, suffix, entries),
        unit[prefix:].expand(batch, heads, streams, -1, -1),
        dropout_p=0.4,
        seed=seed,
    )
    keep = torch.cat(attention_keep_mask(torch.tensor(seed), 0.4, batch, heads, streams, prefix, suffix), dim=-1)
    torch.testing.assert_close(output, keep / (0.6 * entries))


@on_every_instruction_set
def test_the_ends_of_the_range_of_dropout(instruction_set):
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large | {"dropout_p": 0.0})
    without = evaluate(stream_attention, case)
    for dropout_p, factor in ((1e-12, 1.0), (1 - 2**-40, 0.0)):  # nothing is dropped, everything is
        case.options.update(dropout_p=dropout_p, seed=5)
        for name, result in evaluate(stream_attention, case).items():
            torch.testing.assert_close(result, factor * without[name], msg=name)


# ------------------------------------------------------------------------------------------ values


@on_every_instruction_set
def test_not_a_number_stays_where_it_is(instruction_set):
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.small | {"dropout_p": 0.0, "streams": 3, "lengths": None})
    expected = stream_attention(**case.tensors, **case.options)
    case.tensors["query"][0, 0, 1] = torch.nan
    case.tensors["stream_key"][0, 1, 0, 0, 1] = torch.nan
    case.tensors["stream_value"][1, 0, 2, 1] = torch.nan
    case.tensors["prefix_value"][1, 1, 0, 0] = torch.nan
    output = stream_attention(**case.tensors, **case.options)
    with use_backend("reference"):
        reference = stream_attention(**case.tensors, **case.options)
    assert torch.equal(output.isnan(), reference.isnan())
    assert output.isnan().any(dim=-1).sum() == 1 + 1 + 1 + 3
    assert torch.equal(output[~output.isnan()], expected[~output.isnan()])


@on_every_instruction_set
@pytest.mark.parametrize("suffix", [0, 3])
def test_lse(instruction_set, suffix):
    """What the forward pass says of every softmax: log2 of its sum, -inf where there is nothing to attend to."""
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large | {"suffix": suffix, "dropout_p": 0.0})
    lengths = torch.tensor([131, 0, 60])
    query, prefix_key, _, stream_key, _ = tensors = case.tensors.values()
    lse = torch.ops.plr_kernels.stream_attention_forward(*tensors, lengths, None, 0.3, 0.0, "cpp")[1]
    scores = torch.cat([query @ prefix_key.mT, (stream_key @ query.unsqueeze(-1)).squeeze(-1)], dim=-1)
    beyond = torch.arange(131) >= lengths[:, None, None, None]
    scores[..., :131].masked_fill_(beyond, -torch.inf)
    torch.testing.assert_close(lse, (0.3 * scores).exp().sum(-1).log2())


@on_every_instruction_set
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_as_torch_rounds(instruction_set, dtype):
    """One entry has probability 1: the output is its value, and c times the output's gradient is the value's."""
    numbers = torch.cat([torch.randn(500) * 2.0**power for power in range(-30, 15)]).to(dtype)
    value = numbers.reshape(1, 1, 1, -1).requires_grad_()
    empty = torch.zeros(1, 1, 1, 0, numbers.numel(), dtype=dtype)
    output = stream_attention(torch.zeros_like(value), torch.zeros_like(value), value, empty, empty)
    assert torch.equal(output, value)
    dropped = stream_attention(
        torch.zeros_like(value), torch.zeros_like(value), value, empty, empty, dropout_p=0.25, seed=1
    )
    assert torch.equal(dropped, (value.float() * torch.tensor(1 / 0.75)).to(dtype))
    (gradient,) = torch.autograd.grad(dropped, value, numbers.reshape(value.shape))
    assert torch.equal(gradient, dropped)


def test_lengths_outside_the_prefix_raise_without_the_public_checks():
    tensors = make_case(STREAM_ATTENTION, STREAM_ATTENTION.small).tensors.values()
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=rf"prefix_lengths must be in \[0, P\] \(P=3\), found {wrong}"):
            torch.ops.plr_kernels.stream_attention_forward(*tensors, torch.tensor([0, wrong]), None, 1.0, 0.0, "cpp")


# ------------------------------------------------------------------------------------------ threads


@on_every_instruction_set
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [{}, {"streams": 40, "prefix": 30, "batch": 80, "per_query": True}], ids=str)
@pytest.mark.usefixtures("threads_restored")
def test_the_number_of_threads_changes_no_bit(instruction_set, dtype, sizes):
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large | {"batch": 300, "prefix": 70} | sizes, dtype=dtype)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(evaluate(stream_attention, case))
    for other in results[1:]:
        for name, result in other.items():
            assert torch.equal(result, results[0][name]), name


# ------------------------------------------------------------------------------------------ registration


def test_auto_is_cpp_on_the_cpu():
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large)
    expected = stream_attention(**case.tensors, **case.options)
    with use_backend("auto"):
        assert torch.equal(stream_attention(**case.tensors, **case.options), expected)
    with use_backend("reference"):
        assert not torch.equal(stream_attention(**case.tensors, **case.options), expected)
    assert set(operator.IMPLEMENTATIONS) == {"reference", "cpp", "triton"}


@pytest.mark.parametrize("sizes", [{}, {"lengths": None, "dropout_p": 0.0}], ids=str)
def test_opcheck(sizes):
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.small | sizes)
    tensors = [tensor.requires_grad_() for tensor in case.tensors.values()]
    lengths, seed = case.options.get("prefix_lengths"), case.options.get("seed")
    dropout_p = case.options["dropout_p"]
    ops = torch.ops.plr_kernels
    torch.library.opcheck(ops.stream_attention_forward.default, (*tensors, lengths, seed, 0.7, dropout_p, "cpp"))
    tensors = [tensor.detach() for tensor in tensors]
    output, lse = ops.stream_attention_forward(*tensors, lengths, seed, 0.7, dropout_p, "cpp")
    for needs in ([True] * 5, [False, True, False, False, True]):
        torch.library.opcheck(
            ops.stream_attention_backward.default,
            (output, *tensors, lengths, seed, lse, 0.7, dropout_p, needs, "cpp"),
        )


@on_every_instruction_set
@pytest.mark.parametrize("sizes", [{}, {"lengths": None, "dropout_p": 0.0}, {"streams": 0}], ids=str)
def test_past_the_dispatcher(instruction_set, sizes, monkeypatch):
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.small | sizes)
    case.options["scale"] = 0.7
    arguments = [case.options.get(name) for name in ("prefix_lengths", "seed", "scale", "dropout_p")]
    expected = torch.ops.plr_kernels.stream_attention_forward(*case.tensors.values(), *arguments, "cpp")[0]
    with torch.profiler.profile():
        by_dispatcher = evaluate(stream_attention, case)
    monkeypatch.setattr(operator, "_call_through_dispatcher", None)
    assert torch.equal(stream_attention(**case.tensors, **case.options), expected)
    for name, result in evaluate(stream_attention, case).items():
        assert torch.equal(result, by_dispatcher[name]), name


def test_modes_see_the_operator():
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.small)
    with FlopCounterMode(display=False) as counter:
        stream_attention(**case.tensors, **case.options)
    assert counter.get_total_flops() > 0


def test_compiles_with_dropout_and_lengths():
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large)
    compiled = torch.compile(stream_attention, fullgraph=True, backend="aot_eager")
    expected = evaluate(stream_attention, case)
    for name, result in evaluate(compiled, case).items():
        assert torch.equal(result, expected[name]), name


@pytest.mark.parametrize("empty", ["batch", "heads", "streams"])
def test_nothing_to_compute(empty):
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.small | {empty: 0})
    results = evaluate(stream_attention, case)
    assert all(not result.any() for result in results.values())


@on_every_instruction_set
def test_every_set_of_gradients_at_the_size_of_a_model(instruction_set):
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.large | {"streams": 4, "prefix": 50, "suffix": 2, "dim": 32})
    full = evaluate(stream_attention, case)
    names = list(case.tensors)
    for wanted in itertools.chain.from_iterable(itertools.combinations(names, count) for count in range(1, 5)):
        for name, result in evaluate(stream_attention, case, wanted).items():
            assert torch.equal(result, full[name]), f"{name} for {wanted}"
