"""Recommenders: item encoder x sequence encoder x method."""

from plr.models.base import BaseRecommender
from plr.models.encoder import Encoded, SequenceEncoder
from plr.models.erl import ERLRecommender
from plr.models.items import IdItemEncoder
from plr.models.lares import LARESRecommender
from plr.models.lares_post_training import PostTrainedLARES
from plr.models.plr import ParallelReasoning, PLRRecommender
from plr.models.prl import PRLRecommender
from plr.models.reasoning import Reasoning, reason
from plr.models.recommender import Recommender
from plr.models.registry import BACKBONES, METHODS, build_model

__all__ = [
    "BACKBONES",
    "METHODS",
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
    "Recommender",
    "SequenceEncoder",
    "build_model",
    "reason",
]
