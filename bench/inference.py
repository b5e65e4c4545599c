"""Answering: the inference engine beside a plain PyTorch SASRec with the same weights and answers, in turns.

    OMP_NUM_THREADS=1 python -m bench.inference

The peer is SASRec as one would write it: fused QKV, scaled_dot_product_attention, every position in both layers,
`state @ table.T`, `topk`. What is timed is a call from numbers to the ten best items, as numbers: the thread's own
time, so that what else the machine does counts little. Every figure is a ratio to the peer, taken round by round.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.records import RESULTS, Spread, write_record, write_text
from plr.config import Config
from plr.models import build_model
from plr.models.layers.transformer import TransformerLayer
from plr.models.recommender import RecommenderModel
from plr.serving import Engine
from plr_kernels import extension

LENGTH, K = 50, 10


class PlainLayer(nn.Module):
    """One layer of it."""

    def __init__(self, layer: TransformerLayer) -> None:
        super().__init__()
        self.heads = layer.heads
        self.qkv = nn.Linear(layer.query.in_features, 3 * layer.query.out_features)
        self.qkv.weight.data = torch.cat([layer.query.weight, layer.key_value.weight]).detach()
        self.qkv.bias.data = torch.cat([layer.query.bias, layer.key_value.bias]).detach()
        self.output, self.ffn_in, self.ffn_out = map(plain, (layer.attention_output, layer.ffn_in, layer.ffn_out))
        self.attention_norm, self.ffn_norm = layer.attention_norm, layer.ffn_norm

    def forward(self, states: Tensor) -> Tensor:
        """[B, L, d] -> [B, L, d]."""
        query, key, value = self.qkv(states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = self.attention_norm(states + self.output(attended.transpose(1, 2).flatten(2)))
        return self.ffn_norm(states + self.ffn_out(functional.gelu(self.ffn_in(states))))


class PlainSASRec(nn.Module):
    """The encoder of a SASRec of ours, with its weights, as plain PyTorch: padded batches, every position."""

    def __init__(self, model: RecommenderModel) -> None:
        super().__init__()
        encoder = model.encoder
        self.table = model.item_table().detach()
        self.position, self.input_norm = encoder.position, encoder.input_norm
        self.layers = nn.ModuleList(PlainLayer(cast(TransformerLayer, layer)) for layer in encoder.layers)

    def forward(self, item_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L] and [B] -> scores and items [B, K]."""
        states = self.input_norm(self.table[item_ids] + self.position.weight[: item_ids.shape[1]])  # [B, L, d]
        for layer in self.layers:
            states = layer(states)
        last = states[torch.arange(len(lengths)), lengths - 1]  # [B, d]
        return (last @ self.table.T).topk(K)


def plain(layer: nn.Linear) -> nn.Linear:
    """The layer as nn.Linear, with the same weights."""
    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.weight, copy.bias = layer.weight, layer.bias
    return copy


# PLR as printed, with one vector a history, and as it is trained by default, with four distributions.
SYSTEMS: dict[str, dict[str, Any]] = {
    "sasrec": {"method": "base"},
    "plr as printed": {"method": "plr", "mixture": "states", "streams": 2},
    "plr": {"method": "plr"},
}


def build(system: str, items: int, dim: int) -> RecommenderModel:
    """A model whose logits have standard deviation 3, as after training: flat mixtures take a second sweep."""
    model = build_model(Config(**SYSTEMS[system], dim=dim, max_length=LENGTH, seed=1), items).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        model.item_table().normal_(std=3 * dim**-0.5, generator=torch.Generator().manual_seed(2))
    return model


def measure(calls: dict[str, Callable[[], Any]], seconds: float, least: int = 7) -> dict[str, Spread]:
    """The ratios of each call's time to that of the first, with quartiles over rounds in which each has a turn."""
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    for call in calls.values():
        call()
    while len(rounds) < least or time.perf_counter() < end:
        times = [time.thread_time()]
        for call in calls.values():
            call()
            times.append(time.thread_time())
        rounds.append([after - before for before, after in pairwise(times)])
    ratios = {name: Spread.of([each[i] / each[0] for each in rounds]) for i, name in enumerate(calls)}
    ratios["seconds"] = Spread.of([each[0] for each in rounds])
    return ratios


def case(items: int, dim: int, users: int, shortest: int, seconds: float, with_compiled: bool) -> dict[str, Any]:
    """One row of the table."""
    generator = torch.Generator().manual_seed(users)
    lengths = torch.randint(shortest, LENGTH + 1, (users,), generator=generator)
    ids = torch.randint(0, items, (int(lengths.sum()),), generator=generator)
    offsets = torch.tensor([0, *accumulate(lengths.tolist())])
    item_ids = nn.utils.rnn.pad_sequence(list(ids.split(lengths.tolist())), batch_first=True)
    models = {system: build(system, items, dim) for system in SYSTEMS}
    engines = {system: Engine(model) for system, model in models.items()}
    peer = PlainSASRec(models["sasrec"]).eval()
    calls: dict[str, Callable[[], Any]] = {"plain": lambda: peer(item_ids, lengths)}
    if with_compiled:
        fast = torch.compile(peer, dynamic=False)
        calls["compiled"] = lambda: fast(item_ids, lengths)
    for system, engine in engines.items():
        calls[system] = partial(engine.top, ids, offsets, K)
    with torch.inference_mode():
        found, expected = calls["sasrec"](), calls["plain"]()
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
        ratios = measure(calls, seconds)
    return {
        "items": items,
        "dim": dim,
        "users": users,
        "lengths": [shortest, LENGTH],
        **{name: [spread.low, spread.median, spread.high] for name, spread in ratios.items() if name != "plain"},
    }


def table(record: dict[str, Any]) -> str:
    """The record for readers."""
    rows = record["ratios_to_plain"]
    columns = [name for name in ("compiled", *SYSTEMS) if name in rows[0]]
    lines = [
        f"# Answering, one thread, {record['instruction_set']}: time over that of a plain PyTorch SASRec",
        "",
        f"`{record['command']}`. Median of the rounds (quartiles); the ten best items of V.",
        "",
        "| V | d | users | items each | plain, ms a call | " + " | ".join(columns) + " |",
        "|" + "---|" * (5 + len(columns)),
    ]
    for row in rows:
        shortest, longest = row["lengths"]
        cells = [
            f"{row['items']:,}",
            row["dim"],
            row["users"],
            longest if shortest == longest else f"{shortest} to {longest}",
            f"{row['seconds'][1] * 1e3:.3g}",
            *("{1:.2f} ({0:.2f}–{2:.2f})".format(*row[name]) for name in columns),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[12_101, 87_969])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row, at least")
    parser.add_argument("--compiled", action="store_true", help="with torch.compile of the peer beside it")
    parser.add_argument("--out", type=Path, default=RESULTS / "inference.json")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for items in chosen.items:
        for dim in chosen.dims:
            for users in chosen.users:
                for shortest in (LENGTH, 3):
                    rows.append(case(items, dim, users, shortest, chosen.seconds, chosen.compiled))
                    print(rows[-1], flush=True)
    record = {
        "command": " ".join(["python -m bench.inference", *(sys.argv[1:] if arguments is None else arguments)]),
        "torch": torch.__version__,
        "instruction_set": extension.instruction_set(),
        "threads": 1,
        "ratios_to_plain": rows,
    }
    write_record(chosen.out, record)
    write_text(chosen.out.with_suffix(".md"), table(record))
    print(table(record))


if __name__ == "__main__":
    main()
