"""From raw histories to the best items."""

from plr.errors import RequestError
from plr.serving.engine import Engine
from plr.serving.recommender import Recommendation, Recommender
from plr.serving.session import Session

__all__ = ["Engine", "Recommendation", "Recommender", "RequestError", "Session"]
