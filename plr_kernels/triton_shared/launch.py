"""How the Triton kernels are cut into blocks, and the reason for each choice.

No choice depends on the number of rows, items or users in a way that would compile a kernel anew for every batch, and
none on the chip beyond the shared memory that a block may use.

BLOCK_M, BLOCK_P, BLOCK_R, BLOCK_V and so on are how many entries along M, P, R (rows of states) or V (items) a program
takes at a time. BLOCK_D is how many of the D columns it reads at a time, HELD_D how many columns of an operand or of a
gradient it holds all the while.
"""

from __future__ import annotations

from typing import Final

import torch

from plr_kernels.dispatch.backend import TRITON_INTERPRETED

# What half of the GPUs in use offer to a block (sm_86, sm_89, sm_120); sm_80 has 163 KiB, sm_90 and sm_100 227 KiB.
SMALL_SHARED_MEMORY: Final = 99 * 1024
# Columns of a gradient that one program holds: 256 float32 columns of 64 rows are 64 registers of 256 threads.
WIDEST_BLOCK: Final = 256

# Rows that one program of a kernel takes whose work per row is small.
ROWS_PER_PROGRAM: Final = 128
# How many programs a split loop aims at, for the 132 multiprocessors of an H100. Constants, so that results do not
# depend on the chip. Parts of the forward pass are three numbers per row, those of a gradient float32 rows: fewer
# of these, 528 programs of 128 rows and 256 columns hold 69 MB. Under the interpreter few, so that loops have several
# steps.
FORWARD_PROGRAMS: Final = 4 if TRITON_INTERPRETED else 1056
GRADIENT_PROGRAMS: Final = 4 if TRITON_INTERPRETED else 528

Options = dict[str, int | bool]
# For kernels that check values: their assertions are compiled in, and none on integers that might overflow.
ASSERTING: Final[Options] = {"debug": True, "sanitize_overflow": False}


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block of threads may use on a device."""
    if device.type != "cuda":
        return SMALL_SHARED_MEMORY
    # PyTorch's stub lacks the attribute.
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]


def power_of_two(number: int, smallest: int = 1) -> int:
    """The smallest power of two that is at least `number` and at least `smallest`."""
    return max(smallest, 1 << max(number - 1, 0).bit_length())


def blocks(count: int, size: int) -> int:
    """How many blocks of `size` cover `count` entries."""
    return -(-count // size)


def options(num_warps: int, num_stages: int, **sizes: int) -> Options:
    """The launch options, with no multiply-adds fused but those of tl.dot: the default depends on the Triton version.

    product · scale − maximum must be exactly 0 at the maximum. Fused, it is the product's rounding: the probability of
    a single entry with all of the weight would not be 1, and a gradient not 0, by far more than rounding where logits
    are in the hundreds. Without, kernels have 1 to 4 % more instructions.
    """
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": False, **sizes}


def stream_attention(streams: int, dim: int, element_size: int, device: torch.device, backward: bool) -> Options:
    """Blocks of streams and prefix entries.

    All streams of a user share a block where there are at most 32 of them (64 of narrow heads), so that the prefix is
    read once. 16 is the least that a matrix instruction takes; what is padding costs no memory traffic, which is the
    limit. Entries come 64 at a time (a history of 50 is one block), fewer where heads are wide or the numbers float32:
    keys and values are double buffered in shared memory.
    """
    held_d = power_of_two(dim, 16)
    if TRITON_INTERPRETED:
        return options(4, 1, BLOCK_M=min(power_of_two(streams), 4), BLOCK_P=64, HELD_D=held_d)
    row = held_d * element_size
    block_m = min(power_of_two(streams, 16), 64 if row <= 128 else 32 if row <= 512 else 16)
    block_p = 64 if row <= 256 else 32 if row <= 512 else 16
    if backward:  # five products instead of two, and twice the registers
        block_m, block_p = min(block_m, 32), min(block_p, 64 if row <= 128 else 32)
    warps = min(max(block_m * row // 1024, 4), 16)  # a KiB of queries each: with more, registers spill
    return options(warps, 2 if row <= 1024 else 1, BLOCK_M=block_m, BLOCK_P=block_p, HELD_D=held_d)


def stream_attention_prefix_gradient(attention: Options, element_size: int) -> Options:
    """Blocks of the kernel that sums the prefix' gradients over many streams, given those of the backward pass.

    float32 numbers, multiplied without matrix instructions, spill with larger blocks.
    """
    return {**attention, "BLOCK_M": 16, "BLOCK_P": 16} if element_size == 4 and not TRITON_INTERPRETED else attention


def float32_precision() -> str:
    """How torch multiplies float32 numbers on GPUs at this moment: "highest", "high" or "medium".

    Since PyTorch 2.9 `torch.backends.cuda.matmul.fp32_precision` says so too. Where that alone allows tf32, the older
    question raises RuntimeError.
    """
    if getattr(torch.backends.cuda.matmul, "fp32_precision", None) == "ieee":
        return "highest"
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "medium"


def split(loop_blocks: int, owners: int, wanted: int) -> tuple[int, int]:
    """Cut a loop of `loop_blocks` steps, run by each of `owners` programs: steps per part, and number of parts."""
    parts = min(loop_blocks, blocks(wanted, owners))
    per_part = blocks(loop_blocks, parts)
    return per_part, blocks(loop_blocks, per_part)


# Largest first: what a program owns (rows of states or items), what it visits at a time, warps, blocks in flight.
_SCORE_TILES: Final = (
    (128, 128, 8, 2),
    (128, 64, 8, 2),
    (128, 32, 8, 2),
    (64, 64, 8, 2),
    (64, 32, 8, 2),
    (32, 32, 4, 2),
    (16, 16, 4, 1),
)


def sweep(rows: int, vocabulary: int, tile: Options) -> tuple[int, int, int]:
    """Of a ranking sweep of the items: blocks of rows; blocks of items that a program takes; splits of the items."""
    row_blocks = blocks(rows, tile["BLOCK_R"])
    return row_blocks, *split(blocks(vocabulary, tile["BLOCK_V"]), row_blocks, GRADIENT_PROGRAMS)


def _float32_tile(group: int, dim: int, gradient: bool) -> tuple[int, int, int]:
    """How many entries a program owns and visits at a time, and columns of its gradient, of float32 numbers.

    At "highest" products are no matrix instructions: each thread holds a row and a column of its operands, all of the
    32 columns of a block or all visited entries, and larger tiles spill, by kilobytes where nothing is cut up. At
    "high" an operand is split in two, which takes twice the registers and, uncut, more shared memory than there is.
    """
    if group > 32:
        return 16, 16, 64
    precision = float32_precision()
    held_d = min(power_of_two(dim, 16), WIDEST_BLOCK if precision == "medium" else 128)
    owned = 32 if gradient and precision == "highest" and held_d > 64 else 64
    return owned, 32 if gradient or group > 16 else 64, held_d


def _score_tile(
    group: int, dim: int, element_size: int, device: torch.device, owned: int, visited: int, gradient: bool
) -> tuple[int, int, Options]:
    """The largest tile of scores whose operands fit into shared memory, all D columns at once where D <= 256.

    Wider rows, and groups of more than 32 states, are read in blocks of columns, and their gradients computed in blocks
    of columns, with the scores anew for each. So is all of float32.

    Args:
        group: the number of states in a group.
        dim: the number of columns.
        element_size: bytes of a number.
        device: where the kernel runs.
        owned: the most entries that a program may own.
        visited: the most entries to visit at a time.
        gradient: whether the program sums a gradient, `owned` × HELD_D numbers.

    Returns:
        How many entries a program owns, how many it visits at a time, and the other options.
    """
    group = power_of_two(group)
    if TRITON_INTERPRETED:
        held_d = min(power_of_two(dim, 16), 64 if element_size == 4 else 32)
        return 64, 128, options(4, 1, GROUP=group, HELD_D=held_d, BLOCK_D=16)
    block_d = 64 if element_size == 2 else 32
    if element_size == 4:
        owned, visited, held_d = _float32_tile(group, dim, gradient)
        return owned, visited, options(8, 2, GROUP=group, HELD_D=held_d, BLOCK_D=block_d)
    if dim > WIDEST_BLOCK or group > 32:
        held_d = 64 if group > 32 else 128
        return 64, 32, options(8, 2, GROUP=group, HELD_D=held_d, BLOCK_D=block_d)
    held_d = power_of_two(dim, 16)
    row = held_d * element_size
    fitting = [
        tile
        for tile in _SCORE_TILES
        if tile[0] <= owned
        and tile[1] <= visited
        and (tile[0] + tile[3] * tile[1]) * row + tile[0] * tile[1] * element_size <= shared_memory(device)
    ]
    owned, visited, warps, stages = fitting[0]
    return owned, visited, options(warps, stages, GROUP=group, HELD_D=held_d, BLOCK_D=held_d)


def score_forward(group: int, dim: int, element_size: int, device: torch.device) -> Options:
    """A program owns rows of states. One product and few registers, so up to 128 items at a time.

    64 where the means of groups need registers too.
    """
    rows, items, tile_options = _score_tile(group, dim, element_size, device, 128, 128 if group == 1 else 64, False)
    return {**tile_options, "BLOCK_R": max(rows, tile_options["GROUP"]), "BLOCK_V": items}


def _reads_shared_memory(device: torch.device) -> bool:
    """Whether matrix instructions take operands from shared memory (sm_90 and later, known by its size).

    Elsewhere operands pass through registers, and fewer are left for sums.
    """
    return shared_memory(device) > 200 * 1024


def _gradient_owned(element_size: int, device: torch.device) -> int:
    """How many rows of states or items a program owns whose gradients it sums, `owned` × D numbers in registers.

    Matrix instructions of sm_90 take 64 rows from each half of 8 warps, so 128 are the least that both fill: in the
    gradient of the items (D = 256, N = 4) 18 of them and 650 other instructions serve 128 × 32 scores, where with 64
    items 34 and 700 serve 64 × 32; and what is visited is read half as often. On sm_100 the tiles are the full ones of
    its matrix unit too; other instructions per score are a quarter fewer with Triton 3.9, with 3.6 as many. Where
    operands pass through registers, 128 leave too few for groups of 25.
    """
    return 128 if element_size == 2 and _reads_shared_memory(device) else 64


def states_gradient(group: int, dim: int, element_size: int, device: torch.device) -> Options:
    """A program owns rows of states and visits items."""
    owned = _gradient_owned(element_size, device)
    visited = 32 if owned == 128 or group > 16 else 64  # the means of large groups need registers too
    rows, items, tile_options = _score_tile(group, dim, element_size, device, owned, visited, True)
    return {**tile_options, "BLOCK_R": max(rows, tile_options["GROUP"]), "BLOCK_V": items}


def items_gradient(group: int, dim: int, element_size: int, device: torch.device) -> Options:
    """A program owns items and visits rows of states, 32 where 64 make registers spill."""
    visited = 32 if _reads_shared_memory(device) else 64
    owned = _gradient_owned(element_size, device)
    items, rows, tile_options = _score_tile(group, dim, element_size, device, owned, visited, True)
    return {**tile_options, "BLOCK_R": max(rows, tile_options["GROUP"]), "BLOCK_V": items}


# Parts of a row that are put together at a time, in blocks of 1024 of them: enough loads in flight to hide their time.
_PARTS: Final = 2 if TRITON_INTERPRETED else 64


def statistics(group: int) -> Options:
    """A kernel that puts parts of groups' rows together."""
    group = power_of_two(group)
    block_r = max(group, 16)
    return options(4, 1, GROUP=group, BLOCK_R=block_r, BLOCK_S=max(16 * _PARTS // block_r, 2))


def row_losses(dim: int) -> Options:
    """The same of rows, each read once with its target's item."""
    return {**row_products(dim), **ASSERTING, "BLOCK_S": _PARTS}


def row_products(dim: int) -> Options:
    """A kernel that reads each row once: 16 rows at a time keep enough loads in flight."""
    return options(4, 1, BLOCK_R=16, BLOCK_D=min(power_of_two(dim, 16), WIDEST_BLOCK))


def candidate_scores(element_size: int) -> Options:
    """Blocks of rows and of the candidates that they share; a program has one tile of scores."""
    if TRITON_INTERPRETED:
        return {**options(4, 1, BLOCK_R=32, BLOCK_K=32, BLOCK_D=16), **ASSERTING}
    if element_size == 4:
        return {**options(4, 2, BLOCK_R=32, BLOCK_K=32, BLOCK_D=32), **ASSERTING}
    return {**options(4, 3, BLOCK_R=64, BLOCK_K=64, BLOCK_D=64), **ASSERTING}


def candidate_gradient(dim: int, element_size: int, device: torch.device) -> Options:
    """Blocks of rows, candidates and columns: a program sums the gradient of one block over all of another.

    Smaller ones where operands pass through registers, which else spill: float32 numbers in 32 rows spill with Triton
    3.8, half-size ones in four warps with 3.6.
    """
    shared = _reads_shared_memory(device)
    held_d = min(power_of_two(dim, 16), 128 if shared else 64)
    if TRITON_INTERPRETED:
        return options(4, 1, BLOCK_R=32, BLOCK_K=32, HELD_D=min(held_d, 32))
    if element_size == 4:
        return options(4, 2, BLOCK_R=16, BLOCK_K=32, HELD_D=min(held_d, 32))
    if shared:
        return options(8, 2, BLOCK_R=64, BLOCK_K=64, HELD_D=held_d)
    return options(4, 2, BLOCK_R=32, BLOCK_K=32, HELD_D=held_d)


def own_candidates(dim: int, *, asserting: bool = False) -> Options:
    """A kernel that reads some candidates of one row at a time."""
    chosen = options(4, 1, BLOCK_K=16 if TRITON_INTERPRETED else 32, BLOCK_D=min(power_of_two(dim, 16), 128))
    return {**chosen, **ASSERTING} if asserting else chosen


def candidate_items(dim: int) -> Options:
    """A kernel that adds up rows one after the other, of few columns each: one warp."""
    return options(1, 1, BLOCK_D=min(power_of_two(dim, 16), 128))


def info_nce_forward(element_size: int, has_labels: bool) -> Options:
    """One tile per program: a batch of 2048 in 4 groups is 1024 programs of 128 × 128.

    Which pairs have a label in common takes registers that a tile of that size does not leave with every Triton.
    """
    if TRITON_INTERPRETED:
        return options(4, 1, BLOCK=128, BLOCK_D=32)
    if element_size == 2:
        return options(4, 3, BLOCK=64, BLOCK_D=64) if has_labels else options(8, 3, BLOCK=128, BLOCK_D=64)
    return options(4, 3, BLOCK=64, BLOCK_D=32)


def info_nce_backward(dim: int, element_size: int) -> Options:
    """A block of one view's rows; at most 128 columns of the gradient, so that few groups still fill the chip."""
    held_d = min(power_of_two(dim, 16), 128)
    if TRITON_INTERPRETED:
        return options(4, 1, BLOCK_R=128, BLOCK_V=64, HELD_D=min(held_d, 32), BLOCK_D=32)
    return options(8, 2, BLOCK_R=64, BLOCK_V=64 if element_size == 2 else 32, HELD_D=held_d, BLOCK_D=64)


def info_nce_losses() -> Options:
    """A kernel that puts the parts of 16 vectors' softmaxes together."""
    return options(4, 1, BLOCK_R=16, BLOCK_S=_PARTS)


def top_items(rows: int, k: int, element_size: int, is_mixture: bool = False) -> Options:
    """Blocks of rows and items. Few rows per block: a block visits the longest of its rows' lists of candidates.

    16 rows where there are no more, the least that a matrix instruction takes, else 32. Columns come in blocks of 64,
    of float32 numbers 16: with 32, registers spill with Triton 3.6. Under a mixture, whose streams' scores are added up
    in registers too, items come 64 at a time.
    """
    block_k = power_of_two(k)
    if TRITON_INTERPRETED:
        return options(4, 1, BLOCK_R=16, BLOCK_V=16 if k <= 16 else 256, BLOCK_K=block_k, BLOCK_X=16, BLOCK_D=16)
    block_r = 16 if rows <= 16 else 32
    block_d = 64 if element_size == 2 else 16
    return options(
        8, 3, BLOCK_R=block_r, BLOCK_V=64 if is_mixture else 128, BLOCK_K=block_k, BLOCK_X=64, BLOCK_D=block_d
    )


def ranks(rows: int, element_size: int) -> Options:
    """Blocks of rows and items whose scores are compared with the targets'.

    Few registers but for the products, so more rows at a time than `top_items` takes; columns as there.
    """
    if TRITON_INTERPRETED:
        return options(4, 1, BLOCK_R=16, BLOCK_V=64, BLOCK_D=16)
    if element_size == 4:
        return options(8, 3, BLOCK_R=16 if rows <= 16 else 64, BLOCK_V=64, BLOCK_D=16)
    return options(8, 3, BLOCK_R=16 if rows <= 16 else 64, BLOCK_V=128, BLOCK_D=64)


def target_anchors() -> Options:
    """A kernel that reads a few numbers of each row's streams."""
    return options(4, 1, BLOCK_R=16 if TRITON_INTERPRETED else ROWS_PER_PROGRAM)


def rank_totals() -> Options:
    """A kernel that adds up each row's counts and reads its excluded ids once."""
    return {**options(4, 1, BLOCK_R=16, BLOCK_S=_PARTS, BLOCK_X=16 if TRITON_INTERPRETED else 64), **ASSERTING}


def sum_norm(dim: int) -> Options:
    """A kernel that holds its rows: some 16 numbers of each of 128 threads, a row's at least."""
    held_d = power_of_two(dim, 16)
    rows = 4 if TRITON_INTERPRETED else max(2048 // held_d, 1)
    return options(min(max(held_d // 512, 4), 16), 1, BLOCK_R=rows, HELD_D=held_d)


def bias_gelu() -> Options:
    """A kernel that reads each number once, 8 of each of 128 threads."""
    return options(4, 1, BLOCK=1024)


def mixture_list(k: int) -> int:
    """How many items of each stream are listed for the k best of a mixture: all slots of a list that is a power of two.

    Longer lists prove more and take longer to keep. Under the interpreter short ones, so that rows take second sweeps.
    """
    return min(power_of_two(k, 4) if TRITON_INTERPRETED else power_of_two(2 * k, 32), 128)


def mixture_candidates(states: int, list_length: int, element_size: int) -> Options:
    """Tiles as in the sweep that found the candidates, for the same products. More stages spill registers."""
    sweep = top_items(states, list_length, element_size)
    return options(8, 1, **{name: sweep[name] for name in ("BLOCK_R", "BLOCK_V", "BLOCK_D")})


def mixture_statistics() -> Options:
    """A kernel that puts parts of rows together."""
    return options(4, 1, BLOCK_R=16, BLOCK_S=_PARTS)


def certificates() -> Options:
    """A kernel that reads a few numbers of each row."""
    return options(4, 1, BLOCK_R=16 if TRITON_INTERPRETED else ROWS_PER_PROGRAM)


def merged_lists(k: int) -> Options:
    """A kernel that merges the lists of one row, some at a time."""
    return options(4, 1, BLOCK_K=power_of_two(k), BLOCK_S=64 if TRITON_INTERPRETED else 1024)


def top_results(k: int) -> Options:
    """A kernel that reads each row's k best and its excluded ids once."""
    return {**options(4, 1, BLOCK_R=4, BLOCK_K=power_of_two(k), BLOCK_X=16 if TRITON_INTERPRETED else 64), **ASSERTING}
