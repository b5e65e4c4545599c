"""From raw histories to the best items."""

from plr.serving.recommender import Recommendation, Recommender, RequestError

__all__ = ["Recommendation", "Recommender", "RequestError"]
