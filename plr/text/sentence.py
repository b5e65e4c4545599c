"""Text vectors of a language model (sentence-transformers), narrowed by PCA where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plr.errors import DataError

__all__ = ["Pca", "encode_sentences", "fit_pca"]


@dataclass(frozen=True, eq=False)
class Pca:
    """x -> (x − mean) components.

    Attributes:
        mean: float64 [W].
        components: float64 [W, N], orthonormal columns, by falling variance.
    """

    mean: Tensor
    components: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """float32 [R, W] -> float32 [R, N]."""
        return ((vectors.double() - self.mean) @ self.components).float()


def fit_pca(vectors: Tensor, width: int) -> Pca:
    """Fit principal components to float32 [R, W], each with its largest entry positive.

    Raises:
        DataError: width is not in 1..min(R, W).
    """
    most = min(vectors.shape)
    if not 1 <= width <= most:
        raise DataError(f"dim must be in 1..{most} for {len(vectors)} texts of width {vectors.shape[1]}; found {width}")
    centred = vectors.double() - vectors.double().mean(dim=0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    components = directions.flip(1)[:, :width]
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    return Pca(vectors.double().mean(dim=0), (components * largest.sign()).contiguous())


def encode_sentences(model: str, texts: Sequence[str]) -> Tensor:
    """Return the model's vectors float32 [N, W]; each different text is encoded once.

    Raises:
        DataError: sentence-transformers is not installed, or cannot load the model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise DataError(
            f"encoder {model!r} needs the package sentence-transformers: pip install -e '.[text]'; "
            "encoder 'tfidf' needs nothing"
        ) from error
    try:
        encoder = SentenceTransformer(model)
    except Exception as error:  # whatever a hub or a damaged file raises
        raise DataError(f"encoder {model!r} cannot be loaded: {error}") from error
    different = list(dict.fromkeys(texts))
    vectors = torch.as_tensor(encoder.encode(different, convert_to_numpy=True, show_progress_bar=False)).float()
    if not bool(vectors.isfinite().all()):
        raise DataError(f"encoder {model!r} gives vectors that are not finite")
    number_of = {text: number for number, text in enumerate(different)}
    return vectors[torch.tensor([number_of[text] for text in texts])]
