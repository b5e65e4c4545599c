"""From raw histories to the best items."""

from plr.serving.recommender import Recommendation, Recommender, UnknownItemError

__all__ = ["Recommendation", "Recommender", "UnknownItemError"]
