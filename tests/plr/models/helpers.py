import copy

import torch

from plr.config import Config
from plr.data import Batch
from plr.models import build_model
from plr_kernels import use_backend


def small_config(**changes) -> Config:
    values = {
        "method": "plr",
        "streams": 4,
        "steps": None if changes.get("reasoning") is False else 2,
        "dim": 16,
        "heads": 2,
        "ffn_dim": 24,
        "max_length": 12,
        "input_dropout": 0.0,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "consistency_weight": 0.0,  # one view
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


def bidirectional(model):
    """The model with an encoder that reads both ways."""
    model.encoder.causal = False
    return model


def scored_by_cosine(model):
    """The model with items that are scored by cosine, as text items are."""
    model.items.cosine = True
    return model


def gradients(model, loss):
    """The gradients of all parameters that the loss reaches, by name."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def close(actual, expected):
    """Equal but for the rounding of float64."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def total(losses):
    """The loss that is minimised."""
    return torch.stack(list(losses.values())).sum()


def assert_equal_gradients(model, loss, expected):
    """Two losses reach the same parameters, with the same gradients."""
    ours, theirs = gradients(model, loss), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        close(ours[name], theirs[name])


def assert_every_parameter_learns(model, batch):
    """No parameter is without a gradient, and none has one of zeros alone."""
    found = gradients(model, total(model.losses(batch)))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.count_nonzero() for gradient in found.values())


def assert_backends_agree(model, total_loss):
    """Loss and gradients of float32 with the C++ backend are as near to float64 as those of the reference are.

    "auto" on CPU tensors is the C++ backend of every operator that has one.

    total_loss is called with a model; what it draws at random must be the same in each call. An error is relative to
    the largest entry of the gradient that it is in. The largest over all parameters is compared: a single one can be
    right by luck. 4 is the room for another order of summation, as in the kernels' tests.
    """
    model = model.float()
    truth_model = copy.deepcopy(model).double()
    with use_backend("reference"):
        loss = total_loss(truth_model)
        truth = {"loss": loss.detach(), **gradients(truth_model, loss)}
    errors = {}
    for backend in ("reference", "auto"):
        with use_backend(backend):
            loss = total_loss(model)
            found = {"loss": loss.detach().double(), **gradients(model, loss)}
        assert found.keys() == truth.keys()
        errors[backend] = max(
            float((found[name] - truth[name]).abs().max() / truth[name].abs().max())
            for name in truth
            if truth[name].count_nonzero()
        )
    assert errors["auto"] <= 4 * max(errors["reference"], torch.finfo(torch.float32).eps), errors
