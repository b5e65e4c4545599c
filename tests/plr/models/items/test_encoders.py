"""Features: the table against the definition written out."""

import pytest
import torch

from plr.config import Config
from plr.items import FeatureField, ItemData
from plr.models import build_model
from plr.models.items.encoders import FeatureItemEncoder

# Item -> values; items 2 and 4 have none in the second field, and 3 none in either.
COLOURS = [[0, 1, 2], [2], [0, 3], [], [1]]
SHOPS = [[1], [0], [], [], []]


def field(name, values):
    offsets = [0]
    for of_item in values:
        offsets.append(offsets[-1] + len(of_item))
    return FeatureField(name, torch.tensor(offsets), torch.tensor([v for of_item in values for v in of_item]))


def encoder(dim=6):
    torch.manual_seed(3)
    return FeatureItemEncoder(5, dim, [field("colour", COLOURS), field("shop", SHOPS)]).double()


def written_out(items):
    rows = []
    for item in range(5):
        row = items.embedding.weight[item]
        for part, values in zip(items.fields, (COLOURS, SHOPS), strict=True):
            weight = part.embedding.weight
            missing = len(weight) - 1
            of_item = values[item] or [missing]
            row = row + sum(weight[value] for value in of_item) / len(of_item)
        rows.append(row)
    return torch.stack(rows)


def test_the_table_is_id_plus_the_mean_of_each_fields_values():
    items = encoder()
    torch.testing.assert_close(items.table(), written_out(items), rtol=1e-14, atol=1e-14)


def test_gradients_are_those_of_the_definition():
    items = encoder()
    weights = torch.randn(5, 6, dtype=torch.float64)
    parameters = list(items.parameters())
    actual = torch.autograd.grad((items.table() * weights).sum(), parameters)
    expected = torch.autograd.grad((written_out(items) * weights).sum(), parameters)
    for one, two in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)


def test_some_rows_are_those_of_the_table_and_so_are_their_gradients():
    items, ids = encoder(), torch.tensor([4, 1, 3])
    weights = torch.randn(3, 6, dtype=torch.float64)
    parameters = list(items.parameters())
    torch.testing.assert_close(items.rows(ids), items.table()[ids], rtol=1e-14, atol=1e-14)
    actual = torch.autograd.grad((items.rows(ids) * weights).sum(), parameters)
    expected = torch.autograd.grad((items.table()[ids] * weights).sum(), parameters)
    for one, two in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)


def test_items_without_a_value_share_a_learned_vector_and_not_zeros():
    items = encoder()
    items.table().sum().backward()
    colour, shop = (part.embedding.weight for part in items.fields)
    assert len(colour) == 4 + 1
    assert len(shop) == 2 + 1
    assert colour[-1].count_nonzero()
    assert torch.equal(colour.grad[-1], torch.ones(6, dtype=torch.float64))  # item 3
    assert torch.equal(shop.grad[-1], torch.full((6,), 3.0, dtype=torch.float64))  # items 2, 3 and 4


def test_feature_numbers_are_not_in_the_weights():
    data = ItemData(5, (field("colour", COLOURS),))
    model = build_model(Config(dim=4, features="a file"), data)
    assert {name for name in model.state_dict() if name.startswith("items.")} == {
        "items.embedding.weight",
        "items.fields.0.embedding.weight",
    }
    again = build_model(Config(dim=4, features="a file", seed=1), data)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.item_table(), model.item_table())


@pytest.mark.parametrize("values", [COLOURS, SHOPS])
def test_item_data_are_saved_and_read_as_they_were(values, tmp_path):
    data = ItemData(5, (field("a/b ö", values), field("second", SHOPS)))
    data.save(tmp_path / "items.safetensors")
    read = ItemData.load(tmp_path / "items.safetensors")
    assert read.num_items == 5
    assert [each.name for each in read.features] == ["a/b ö", "second"]
    assert torch.equal(read.features[0].values, data.features[0].values)
    assert read.content_hash == data.content_hash
    assert read.content_hash != ItemData(5, (field("a/b ö", values),)).content_hash
    assert ItemData(5).content_hash is None
