"""What can be trained: the backbones, the methods, and the pairs of them that are refused. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

__all__ = [
    "BACKBONES",
    "COSINE_TEMPERATURE",
    "METHODS",
    "REFUSALS",
    "Backbone",
    "BackboneName",
    "Method",
    "MethodName",
    "RowKind",
    "method_of",
    "row_kinds",
    "why_no_sequences",
]

RowKind = Literal["prefix", "sequence"]
COSINE_TEMPERATURE = 0.07


@dataclass(frozen=True)
class Method:
    """A way to train and to reason.

    Attributes:
        model: its class, as "file.Class" in `plr.models.methods`.
        description: one sentence, and where the method was published.
        row_kinds: the training rows it can have, the preferred ones first: "prefix" (one row per history and target),
            "sequence" (one row per sequence, a target at every position).
        no_sequences: why it cannot have the latter.
        divergences: the options that weigh its divergences between distributions, which `divergence_share` estimates.
        post_training: what phase "rpt" trains, where the method has one.
        no_sampling: why it cannot be trained on sampled items.
        no_sharding: why its processes cannot share the item table.
    """

    model: str
    description: str = ""
    row_kinds: tuple[RowKind, ...] = ("prefix",)
    no_sequences: str = ""
    divergences: tuple[str, ...] = ()
    post_training: Method | None = None
    no_sampling: str = ""
    no_sharding: str = ""


@dataclass(frozen=True)
class Backbone:
    """A sequence encoder's kind together with what its items are.

    Attributes:
        description: one sentence, and where the system was published.
        causal: whether a position may not read what follows it.
        items: the function that builds the item encoder, as "file.function" in `plr.models.items`.
        row_kinds: the training rows that an encoder of this kind may see.
        temperature: the softmax temperature where the configuration names none.
        reads: which of the configuration's item sources ("features", "text_vectors") it makes use of.
        needs: which of them it requires.
        base: what method "base" means here, where the bare backbone has its own way of training.
        extra_positions: positions beside those of the items.
        shares_items: whether `items` can build the vectors of one process' items alone.
    """

    description: str
    causal: bool
    items: str = "encoders.id_items"
    row_kinds: tuple[RowKind, ...] = ("sequence", "prefix")
    temperature: float = 1.0
    reads: tuple[str, ...] = ("features",)
    needs: tuple[str, ...] = ()
    base: Method | None = None
    extra_positions: int = 0
    shares_items: bool = False


BACKBONES = {
    "sasrec": Backbone(
        "causal self-attention over the items; method base predicts the next item at every position "
        "(SASRec, Kang and McAuley 2018, with full cross-entropy)",
        causal=True,
        shares_items=True,
    ),
    "bert4rec": Backbone(
        "attention both ways over the items, next-item loss on prefixes, reasoning tokens causal behind them "
        "(BERT4Rec as a reasoning backbone in ReaRec, 2025; not trained by Cloze)",
        causal=False,
        row_kinds=("prefix",),
        shares_items=True,
    ),
    "bert4rec-cloze": Backbone(
        "attention both ways, trained to fill in masked items, ranks at an appended mask "
        "(BERT4Rec as published, Sun et al. 2019); a baseline of its own",
        causal=False,
        row_kinds=("sequence",),
        base=Method(
            "cloze.ClozeRecommender",
            row_kinds=("sequence",),
            no_sampling="Cloze scores an item by its vector and a bias of its own, and of the biases there are all",
        ),
        extra_positions=1,
        shares_items=True,
    ),
    "unisrec": Backbone(
        "SASRec's encoder over item vectors made from text by a mixture of whitening experts, scored by cosine "
        "(UniSRec, Hou et al. 2022); inductive: text alone, transductive: plus an id embedding",
        causal=True,
        items="unisrec.text_items",
        temperature=COSINE_TEMPERATURE,
        reads=("text_vectors",),
        needs=("text_vectors",),
        shares_items=True,
    ),
}

METHODS = {
    "base": Method(
        "base.BaseRecommender",
        "the bare backbone, no reasoning",
        row_kinds=("sequence", "prefix"),
        divergences=("consistency_weight",),
    ),
    "erl": Method(
        "erl.ERLRecommender",
        "one stream, the mean of its steps, kept apart by their divergence (ReaRec, arXiv 2503.22675)",
        row_kinds=("prefix", "sequence"),
        divergences=("kl_weight",),
    ),
    "prl": Method(
        "prl.PRLRecommender",
        "one stream, its last step, every earlier one predicting hotter, robust to noise (ReaRec, 2025)",
        row_kinds=("prefix", "sequence"),
    ),
    "lares": Method(
        "lares.LARESRecommender",
        "a depth-recurrent block refines the states of all positions; alignment losses, then reinforcement "
        "(LARES, arXiv 2505.16865)",
        row_kinds=("prefix", "sequence"),
        post_training=Method(
            "lares_post_training.PostTrainedLARES",
            no_sequences="post-training chooses its rows by their targets",
            no_sampling="post-training rewards ranks among all items, and compares log-probabilities over all",
            no_sharding="post-training compares with the model that it starts from, whose table is whole",
        ),
        no_sampling="post-training compares log-probabilities over all items with those of this phase",
    ),
    "plr": Method(
        "plr.PLRRecommender",
        "parallel reasoning streams over the cached prefix, mixed by a gate (PLR, arXiv 2601.03153)",
        row_kinds=("prefix", "sequence"),
        divergences=("kl_weight", "consistency_weight"),
    ),
}

if TYPE_CHECKING:  # a type checker cannot read the tables
    BackboneName = str
    MethodName = str
else:
    BackboneName = Literal[tuple(BACKBONES)]
    MethodName = Literal[tuple(METHODS)]

# (backbone, method) that do not fit -> why: what about the two stands against it, not that it is missing.
REFUSALS: dict[tuple[str, str], str] = {
    ("bert4rec-cloze", method): "Cloze training fills in masked items and leaves no state of the last item, which "
    "reasoning starts from; take backbone bert4rec, the same encoder trained on the next item"
    for method in METHODS
    if method != "base"
}


def method_of(backbone: str, method: str, phase: str) -> Method:
    """Return the method of that name as the backbone means it and the phase, "spt" or "rpt", trains it."""
    own = BACKBONES[backbone].base if method == "base" else None
    chosen = own or METHODS[method]
    return chosen.post_training if phase == "rpt" and chosen.post_training else chosen


def row_kinds(backbone: str, method: Method) -> list[RowKind]:
    """Return the kinds of rows that the method can train on and the backbone may see, the preferred one first."""
    return [kind for kind in method.row_kinds if kind in BACKBONES[backbone].row_kinds]


def why_no_sequences(backbone: str, method: Method) -> str:
    """Return why the method on the backbone cannot have sequence rows."""
    if "sequence" not in BACKBONES[backbone].row_kinds:
        return "its encoder reads both ways, and would see the targets of all positions but the last"
    return method.no_sequences or "the method is trained on a row per history and target alone"
