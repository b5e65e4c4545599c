import torch

from plr.config import Config
from plr.data import Batch
from plr.models import build_model


def small_config(**changes) -> Config:
    values = {
        "method": "plr",
        "dim": 16,
        "heads": 2,
        "ffn_dim": 24,
        "max_length": 12,
        "input_dropout": 0.0,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        **changes,
    }
    return Config(**values)


def small_model(num_items: int = 29, *, spread: float = 0.5, **changes):
    """A model with weights far from zero, so that differences show."""
    model = build_model(small_config(**changes), num_items)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model.double()


def random_batch(lengths=(5, 1, 9, 3), num_items: int = 29, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    items = torch.randint(0, num_items, (len(lengths), int(lengths.max())), generator=generator)
    items[torch.arange(items.shape[1]) >= lengths[:, None]] = 0
    return Batch(
        item_ids=items,
        lengths=lengths,
        targets=torch.randint(0, num_items, (len(lengths),), generator=generator),
        users=torch.arange(len(lengths)),
    )
