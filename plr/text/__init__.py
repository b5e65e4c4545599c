"""Item texts -> vectors: `plr embed-text`, and the folder it writes."""

from plr.text.embed import embed_text
from plr.text.vectors import TextVectors

__all__ = ["TextVectors", "embed_text"]
