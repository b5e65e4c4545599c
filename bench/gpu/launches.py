"""Searches an operator's launch options on the GPU at hand, one option of one kernel at a time.

    python -m bench.gpu.launches pairwise_kl

Starts at what plr_kernels/triton_shared/launch.py chooses, tries the neighbours of every option, keeps what is faster
by more than 2 % and goes on from there until nothing is. Each trial's results are checked against the formula; what
does not compile or does not fit the chip is named. The package is not changed: a better choice belongs into launch.py,
with its reason, where tests/plr_kernels/gpu/test_compiled.py then says whether it also fits the other chips.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.failures import failure
from bench.gpu.cases import CASES, Case, Sizes
from bench.gpu.timing import Clock, CudaClock, WrongResultError, backward, error, exact_results, forward, timed
from bench.records import OURS
from plr_kernels import use_backend
from plr_kernels.triton_shared import launch

BETTER = 0.98
ROUNDS = 20
SCORES = ("score_forward", "states_gradient", "items_gradient")
# The functions of plr_kernels/triton_shared/launch.py that an operator asks, and with which argument.
KERNELS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "stream_attention": (("stream_attention", {"backward": False}), ("stream_attention", {"backward": True})),
    "stream_attention_positions": (
        ("stream_attention", {"backward": False}), ("stream_attention", {"backward": True}),
    ),
    "pairwise_kl": tuple((name, {}) for name in SCORES),
    "linear_cross_entropy": tuple((name, {}) for name in SCORES),
    "info_nce": (("info_nce_forward", {}), ("info_nce_backward", {})),
    "mixture_cross_entropy": tuple((name, {}) for name in SCORES),
    "consistent_mixture_cross_entropy": tuple((name, {}) for name in SCORES),
    "candidate_cross_entropy": (("candidate_scores", {}), ("candidate_gradient", {})),
    "top_items": (("top_items", {}),),
    "top_mixture_items": (("top_items", {"is_mixture": None}), ("top_items", {"is_mixture": True})),
    "target_rank": (("ranks", {}),),
    "target_mixture_rank": (("ranks", {}),),
    "forward_only": (("sum_norm", {}), ("bias_gelu", {}), ("stream_attention", {"backward": False})),
}
BLOCKS = ("BLOCK", "BLOCK_M", "BLOCK_P", "BLOCK_R", "BLOCK_V", "BLOCK_X", "BLOCK_K", "BLOCK_D")


@dataclass
class Choice:
    """A function of launch.py, the calls of it that are meant, and what is put in place of its options."""

    name: str
    when: dict[str, Any]
    chosen: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join((self.name, *(f"{key}={value}" for key, value in self.when.items())))


@contextmanager
def overridden(choices: list[Choice]) -> Iterator[None]:
    """Let the functions answer with the changes, and note what they chose themselves."""
    originals = {choice.name: getattr(launch, choice.name) for choice in choices}

    def replaced(name: str) -> Callable[..., launch.Options]:
        def choose(*arguments: Any, **keywords: Any) -> launch.Options:
            options = originals[name](*arguments, **keywords)
            for choice in choices:
                if choice.name == name and all(keywords.get(key) == value for key, value in choice.when.items()):
                    choice.chosen = options
                    options = {**options, **choice.changes}
            return options

        return choose

    try:
        for name in originals:
            setattr(launch, name, replaced(name))
        yield
    finally:
        for name, original in originals.items():
            setattr(launch, name, original)


def neighbours(options: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The options next to these: half and twice each block and the warps, one stage fewer and more."""
    for name, value in options.items():
        if name == "num_stages":
            yield from ((name, other) for other in (value - 1, value + 1) if other >= 1)
        elif name == "num_warps":
            yield from ((name, other) for other in (value // 2, value * 2) if 1 <= other <= 16)
        elif name in BLOCKS:
            yield from ((name, other) for other in (value // 2, value * 2) if other >= 16)


def search(case: Case, choices: list[Choice], clock: Clock, say: Callable[[str], None]) -> float:
    """Leave the best changes found in `choices`; returns how many times as fast they are."""
    exact = exact_results(case)

    def measure() -> float:
        results = backward(case, forward(case, OURS))
        far = error(results, exact)
        if not far <= case.allowed_error:
            raise WrongResultError(f"off by {far:.2g} from the formula")
        graph = clock.captured(lambda: backward(case, forward(case, OURS)))
        return statistics.median(timed(clock, graph) for _ in range(ROUNDS))

    with overridden(choices):
        first = best = measure()
        say(f"{case.operator}, {case.shape}: {first * 1e3:.4g} ms")
        tried: set[tuple[tuple[Any, ...], ...]] = {_state(choices)}
        improved = True
        while improved:
            improved = False
            for choice in choices:
                for name, value in list(neighbours({**choice.chosen, **choice.changes})):
                    before = dict(choice.changes)
                    choice.changes[name] = value
                    if _state(choices) in tried:
                        choice.changes = before
                        continue
                    tried.add(_state(choices))
                    try:
                        seconds = measure()
                    except Exception as problem:
                        say(f"{choice}: {name}={value}: {failure(problem)}")
                        choice.changes = before
                        continue
                    say(f"{choice}: {name}={value}: {seconds * 1e3:.4g} ms, {seconds / best:.3f} of the best")
                    if seconds < BETTER * best:
                        best, improved = seconds, True
                    else:
                        choice.changes = before
    return first / best


def _state(choices: list[Choice]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(sorted({**choice.chosen, **choice.changes}.items())) for choice in choices)


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.launches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("operators", nargs="+", choices=KERNELS)
    parser.add_argument("--batch", type=int, default=Sizes.batch)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench.gpu.launches needs a GPU that torch can see; there is none.")
    clock = CudaClock()
    for operator in options.operators:
        torch.manual_seed(0)
        case = CASES[operator](Sizes(batch=options.batch), torch.device("cuda"), getattr(torch, options.dtype))
        choices = [Choice(name, when) for name, when in KERNELS[operator]]
        with use_backend("triton"):
            gain = search(case, choices, clock, lambda line: print(line, flush=True))
        print(f"**{case.operator}, {case.shape}: {gain:.3g} times as fast with**")
        for choice in choices:
            print(f"- {choice}: {choice.changes or 'what it chooses now'} (chooses {choice.chosen})")


if __name__ == "__main__":
    main()
