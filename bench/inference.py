"""Answering: the inference engine beside a plain PyTorch SASRec with the same weights and answers, in turns.

    OMP_NUM_THREADS=1 python -m bench.inference
    OMP_NUM_THREADS=1 python -m bench.inference --compiled --exports

The peer is SASRec as one would write it: fused QKV, scaled_dot_product_attention, every position in both layers,
`state @ table.T`, `topk`. What is timed is a call from numbers to the ten best items, as numbers: the thread's own
time, so that what else the machine does counts little. Every figure is a ratio to the peer, taken round by round.
"table, read once" is PyTorch's sum of all numbers of the item table: what ranks by all items in float32 takes that at
least, as a mixture does, whose normalisers are sums over all items.
With --exports also what `plr export` writes of the same models, in ONNX Runtime and compiled by AOTInductor: they pad
histories to max_length.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.one_thread import OneThread, write_both
from bench.records import RESULTS, Spread
from plr.config import Config
from plr.export.compiled import write_compiled
from plr.export.program import write_onnx
from plr.models import build_model
from plr.models.layers.transformer import TransformerLayer
from plr.models.recommender import RecommenderModel
from plr.serving import Engine, Recommender

LENGTH, K = 50, 10
READ = "table, read once"


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


# PLR as printed, with one vector a history, and as it is trained by default, with two distributions.
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


EXPORTED = ("sasrec", "plr")


def exports(system: str, model: RecommenderModel, folder: Path) -> dict[str, Callable[[Tensor, Tensor], Any]]:
    """What ranks by `plr export`'s files of a model, by name: (item_ids, lengths) to scores and items."""
    import onnxruntime

    items = model.item_table().shape[0]
    config = Config(**SYSTEMS[system], dim=model.item_table().shape[1], max_length=LENGTH, seed=1)
    recommender = Recommender(model, list(map(str, range(items))), config)
    manifest = {"k": K, "exclude_seen": False}
    folder.mkdir()
    write_compiled(recommender, folder / "compiled.pt2", manifest)
    write_onnx(recommender, folder / "program.onnx", manifest)
    compiled = torch._inductor.aoti_load_package(str(folder / "compiled.pt2"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # else it works beside the thread that is timed
    session = onnxruntime.InferenceSession(str(folder / "program.onnx"), options, providers=["CPUExecutionProvider"])

    def by_onnx(item_ids: Tensor, lengths: Tensor) -> list[Tensor]:
        found = session.run(None, {"item_ids": item_ids.numpy(), "lengths": lengths.numpy()})
        return [torch.from_numpy(each) for each in found]

    return {f"{system}, AOTInductor": compiled, f"{system}, ONNX Runtime": by_onnx}


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


class Models:
    """What is timed at one V and d: engines, the peer, and what was exported."""

    def __init__(self, items: int, dim: int, folder: Path | None):
        models = {system: build(system, items, dim) for system in SYSTEMS}
        self.items, self.dim = items, dim
        self.engines = {system: Engine(model) for system, model in models.items()}
        self.plain = PlainSASRec(models["sasrec"]).eval()
        self.exports: dict[str, Callable[[Tensor, Tensor], Any]] = {}
        for system in EXPORTED if folder is not None else ():
            self.exports |= exports(system, models[system], cast(Path, folder) / f"{system}-{items}-{dim}")


def case(models: Models, users: int, shortest: int, seconds: float, with_compiled: bool) -> dict[str, Any]:
    """One row of the table."""
    items, dim, peer = models.items, models.dim, models.plain
    generator = torch.Generator().manual_seed(users)
    lengths = torch.randint(shortest, LENGTH + 1, (users,), generator=generator)
    ids = torch.randint(0, items, (int(lengths.sum()),), generator=generator)
    offsets = torch.tensor([0, *accumulate(lengths.tolist())])
    item_ids = nn.utils.rnn.pad_sequence(list(ids.split(lengths.tolist())), batch_first=True)
    calls: dict[str, Callable[[], Any]] = {"plain": lambda: peer(item_ids, lengths)}
    if with_compiled:
        fast = torch.compile(peer, dynamic=False)
        calls["compiled"] = lambda: fast(item_ids, lengths)
    for system, engine in models.engines.items():
        calls[system] = partial(engine.top, ids, offsets, K)
    calls[READ] = peer.table.sum
    for name, call in models.exports.items():
        calls[name] = partial(call, item_ids, lengths)
    with torch.inference_mode():
        for name in calls:
            same = "plr" if name.startswith("plr,") else "sasrec"
            if name not in models.engines and name != READ:
                torch.testing.assert_close(calls[name]()[0], calls[same]()[0], rtol=1e-4, atol=1e-4)
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
    columns = [name for name in rows[0] if name not in ("items", "dim", "users", "lengths", "seconds")]
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
    parser.add_argument("--exports", action="store_true", help="with exported programs beside it; needs plr[export]")
    parser.add_argument("--out", type=Path, default=RESULTS / "inference.json")
    chosen = parser.parse_args(arguments)
    measurement = OneThread("bench.inference", arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for items, dim in product(chosen.items, chosen.dims):
            models = Models(items, dim, Path(folder) if chosen.exports else None)
            for users, shortest in product(chosen.users, (LENGTH, 3)):
                rows.append(case(models, users, shortest, chosen.seconds, chosen.compiled))
                print(rows[-1], flush=True)
    record = measurement.record(ratios_to_plain=rows)
    write_both(chosen.out, record, table)
    print(table(record))


if __name__ == "__main__":
    main()
