"""Checks and times the fused operators on the GPU at hand: `python -m bench.gpu`.

First the parity tests run on the chip; then every operator and its peers take turns, forward and backward, with a
cleared L2 cache, timed by CUDA events. The medians go to bench/results/gpu-DATE.json and .md.
"""

import datetime
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from bench.peers import OURS
from plr_kernels import info_nce, linear_cross_entropy, pairwise_kl, stream_attention, top_items, use_backend
from plr_kernels.info_nce.reference import info_nce as info_nce_formula
from plr_kernels.pairwise_kl.reference import pairwise_kl as pairwise_kl_formula
from plr_kernels.stream_attention.reference import stream_attention as stream_attention_formula

BATCH, STREAMS, STEPS, PREFIX, HEADS, DIM, ITEMS = 2048, 4, 2, 50, 2, 256, 87_969
ROUNDS = 30
RESULTS = Path(__file__).parent / "results"

Rivals = dict[str, Callable[..., Tensor]]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()


def with_compiled(rivals: Rivals) -> Rivals:
    """The rivals, and torch.compile of the eager formula."""
    return {**rivals, "torch.compile": torch.compile(rivals["eager formula"])}


def attention() -> tuple[list[Tensor], Rivals]:
    head = DIM // HEADS
    prefix, own = (BATCH, HEADS, PREFIX, head), (BATCH, HEADS, STREAMS, STEPS, head)
    inputs = [normal(BATCH, HEADS, STREAMS, head), *map(normal_of, (prefix, prefix, own, own))]

    def concatenated(query: Tensor, *keys_and_values: Tensor) -> Tensor:
        """One call per stream, as rows of the batch, with the prefix repeated for each."""
        prefix_key, prefix_value, stream_key, stream_value = keys_and_values
        key, value = (
            torch.cat([shared.unsqueeze(2).expand(-1, -1, STREAMS, -1, -1), each], dim=3).transpose(1, 2).flatten(0, 1)
            for shared, each in ((prefix_key, stream_key), (prefix_value, stream_value))
        )
        rows = query.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        output = scaled_dot_product_attention(rows, key, value).squeeze(2)
        return output.unflatten(0, (BATCH, STREAMS)).transpose(1, 2)

    return inputs, with_compiled(
        {
            OURS: stream_attention,
            "eager formula": lambda *tensors: stream_attention_formula(*tensors, None, head**-0.5, 0.0, None),
            "SDPA on concatenated keys": concatenated,
            "FlexAttention on concatenated keys": flex(head),
        }
    )


def flex(head: int) -> Callable[..., Tensor]:
    """FlexAttention over the prefix and all streams' entries, masked to each query's own stream."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def sees(batch: Tensor, number: Tensor, query: Tensor, entry: Tensor) -> Tensor:
        return (entry < PREFIX) | ((entry - PREFIX) // STEPS == query)

    mask = create_block_mask(sees, None, None, STREAMS, PREFIX + STREAMS * STEPS, device="cuda")
    run = torch.compile(flex_attention)

    def call(
        query: Tensor, prefix_key: Tensor, prefix_value: Tensor, stream_key: Tensor, stream_value: Tensor
    ) -> Tensor:
        key = torch.cat([prefix_key, stream_key.flatten(2, 3)], dim=2)
        value = torch.cat([prefix_value, stream_value.flatten(2, 3)], dim=2)
        return run(query, key, value, block_mask=mask, scale=head**-0.5)

    return call


def normal_of(shape: tuple[int, ...]) -> Tensor:
    return normal(*shape)


def divergence() -> tuple[list[Tensor], Rivals]:
    rivals: Rivals = {
        OURS: pairwise_kl,
        "eager formula": lambda states, items: pairwise_kl_formula(states, items, 1.0, False),
    }
    return [normal(BATCH // 4, STREAMS, DIM), normal(ITEMS, DIM)], with_compiled(rivals)


def contrast() -> tuple[list[Tensor], Rivals]:
    rivals: Rivals = {OURS: info_nce, "eager formula": lambda view1, view2: info_nce_formula(view1, view2, 1.0)}
    return [normal(STREAMS, BATCH, DIM), normal(STREAMS, BATCH, DIM)], with_compiled(rivals)


def cross_entropies() -> tuple[list[Tensor], Rivals]:
    targets = torch.randint(ITEMS, (BATCH,), device="cuda")
    rivals: Rivals = {
        OURS: lambda states, items: linear_cross_entropy(states, items, targets),
        "eager formula": lambda states, items: cross_entropy(states @ items.T, targets),
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        rivals["Liger-Kernel"] = lambda states, items: liger(items, states, targets)
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut

        rivals["cut-cross-entropy, exact"] = lambda states, items: cut(states, items, targets, filter_eps=None)
    return [normal(BATCH, DIM), normal(ITEMS, DIM)], with_compiled(rivals)


def ranking() -> tuple[list[Tensor], Rivals]:
    inputs = [normal(BATCH, DIM).detach(), normal(ITEMS, DIM).detach()]
    return inputs, {
        OURS: lambda states, items: top_items(states, items, 20)[0],
        "product and topk": lambda states, items: (states @ items.T).topk(20).values,
    }


def step(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], None]:
    """Forward, and backward where the inputs ask for gradients."""

    def run() -> None:
        output = function(*inputs)
        if output.requires_grad:
            torch.autograd.grad(output, inputs, torch.ones_like(output))

    return run


def timed(inputs: list[Tensor], rivals: Rivals) -> dict[str, float]:
    """Median milliseconds of each rival, all taking turns."""
    cache = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    steps = {name: step(function, inputs) for name, function in rivals.items()}
    for run in steps.values():
        for _ in range(3):
            run()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, run in steps.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            cache.zero_()
            start.record()
            run()
            stop.record()
            stop.synchronize()
            times[name].append(start.elapsed_time(stop))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Parity, then times; exits with a message where there is no GPU."""
    if not torch.cuda.is_available():
        sys.exit("bench.gpu needs a GPU that torch can see; there is none.")
    parity = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/plr_kernels", "-k", "triton-cuda"])
    if parity.returncode != 0:
        sys.exit("The results on this chip are wrong: nothing was timed.")
    use_backend("triton")
    suites = {
        "stream_attention": attention,
        "pairwise_kl": divergence,
        "linear_cross_entropy": cross_entropies,
        "info_nce": contrast,
        "top_items": ranking,
    }
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "command": "python -m bench.gpu",
        "milliseconds": {name: timed(*suite()) for name, suite in suites.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu-{datetime.date.today()}"
    path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [f"# {report['device']}, torch {report['torch']}, `{report['command']}`", ""]
    lines += ["| operator | implementation | median ms | times ours |", "|---|---|---|---|"]
    for operator, times in report["milliseconds"].items():
        lines += [f"| {operator} | {name} | {ms:.3f} | {ms / times[OURS]:.2f} |" for name, ms in times.items()]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
