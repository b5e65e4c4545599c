"""Item encoders: vectors of all items, from ids, features or text."""

from plr.models.items.encoders import FeatureItemEncoder, IdItemEncoder, ItemEncoder

__all__ = ["FeatureItemEncoder", "IdItemEncoder", "ItemEncoder"]
