"""Recommender models: item encoder x sequence encoder x method."""

from plr.models.encoder import Encoded, SequenceEncoder
from plr.models.items.encoders import IdItemEncoder
from plr.models.methods.base import BaseRecommender
from plr.models.methods.erl import ERLRecommender
from plr.models.methods.lares import LARESRecommender
from plr.models.methods.lares_post_training import PostTrainedLARES
from plr.models.methods.plr import ParallelReasoning, PLRRecommender
from plr.models.methods.prl import PRLRecommender
from plr.models.methods.reasoning import Reasoning, reason
from plr.models.recommender import RecommenderModel
from plr.models.registry import build_model

__all__ = [
    "BaseRecommender",
    "ERLRecommender",
    "Encoded",
    "IdItemEncoder",
    "LARESRecommender",
    "PLRRecommender",
    "PRLRecommender",
    "ParallelReasoning",
    "PostTrainedLARES",
    "Reasoning",
    "RecommenderModel",
    "SequenceEncoder",
    "build_model",
    "reason",
]
