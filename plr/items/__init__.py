"""What is known about items beside their ids: features and text vectors, as a run needs and keeps them."""

from plr.items.item_data import FeatureField, ItemData, ItemText

__all__ = ["FeatureField", "ItemData", "ItemText"]
