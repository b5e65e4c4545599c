"""The folder of text vectors: what `plr embed-text` writes and UniSRec reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from plr.errors import DataError
from plr.files import atomic_path
from plr.items import ItemText

__all__ = ["TextVectors"]

_FORMAT = "plr text vectors"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class TextVectors:
    """The text vectors of N items, and the fitted encoder that made them.

    The folder: `manifest.json` (encoder, source and its hash, versions), `items.parquet` (item_id),
    `vectors.safetensors` (vectors, present), and the fitted parts, `encoder.safetensors` and `vocabulary.parquet`,
    where the encoder has any.

    Attributes:
        item_ids: external ids.
        vectors: float32 [N, W], zeros where there is no text.
        present: bool [N], whether there is a text that the encoder can read.
        manifest: where all this is from, ready for JSON.
        fitted: the encoder's tensors.
        vocabulary: the encoder's words; None for an encoder without.
    """

    item_ids: list[str]
    vectors: Tensor
    present: Tensor
    manifest: dict[str, Any]
    fitted: dict[str, Tensor]
    vocabulary: list[str] | None = None

    def save(self, folder: Path) -> None:
        """Write the folder, aside first.

        Raises:
            DataError: there is something at `folder` already, or these are no text vectors.
        """
        check_free(folder)
        fault = self._fault()
        if fault:
            raise DataError(f"cannot be written: {fault}", folder)
        try:
            self._write(folder)
        except FileExistsError:  # another process was faster
            check_free(folder)
            raise

    def _write(self, folder: Path) -> None:
        with atomic_path(folder, replace=False) as aside:
            aside.mkdir()
            text = json.dumps({"format": _FORMAT, "version": _VERSION, **self.manifest}, indent=2, ensure_ascii=False)
            (aside / "manifest.json").write_text(text + "\n", encoding="utf-8")
            pl.DataFrame({"item_id": pl.Series(self.item_ids, dtype=pl.String)}).write_parquet(aside / "items.parquet")
            tensors = {"vectors": self.vectors.contiguous(), "present": self.present.contiguous()}
            save_file(tensors, aside / "vectors.safetensors")
            if self.fitted:
                save_file(self.fitted, aside / "encoder.safetensors")
            if self.vocabulary is not None:
                column = pl.Series(self.vocabulary, dtype=pl.String)
                pl.DataFrame({"word": column}).write_parquet(aside / "vocabulary.parquet")

    @classmethod
    def load(cls, folder: Path) -> TextVectors:
        """Read what `save` wrote.

        Raises:
            DataError: the folder is not such a folder, or is damaged.
        """
        path = folder / "manifest.json"
        if not path.is_file():
            raise DataError("not a folder of text vectors (manifest.json is missing); make one with `plr embed-text`",
                            folder)  # fmt: skip
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest.pop("format") != _FORMAT or manifest.pop("version") != _VERSION:
                raise ValueError(f"not {_FORMAT} of version {_VERSION}")
            item_ids = pl.read_parquet(folder / "items.parquet", glob=False)["item_id"].to_list()
            tensors = load_file(folder / "vectors.safetensors")
            fitted, words = folder / "encoder.safetensors", folder / "vocabulary.parquet"
            loaded = cls(
                item_ids,
                tensors["vectors"],
                tensors["present"],
                manifest,
                load_file(fitted) if fitted.exists() else {},
                pl.read_parquet(words, glob=False)["word"].to_list() if words.exists() else None,
            )
        except (OSError, ValueError, KeyError, AttributeError, SafetensorError, pl.exceptions.PolarsError) as error:
            raise DataError(f"damaged text vectors: {error}", folder) from error
        fault = loaded._fault()
        if fault:
            raise DataError(f"damaged text vectors: {fault}", folder)
        return loaded

    def _fault(self) -> str | None:
        """Return what is wrong with ids, vectors or marks, None where all is well."""
        vectors, present = self.vectors, self.present
        for name, found in (("vectors", vectors), ("present", present)):
            if not isinstance(found, Tensor):
                kind = f"{type(found).__module__}.{type(found).__qualname__}"
                return f"{name} must be a torch.Tensor (torch.as_tensor makes one); found {kind}"
        if vectors.dtype != torch.float32 or vectors.ndim != 2 or not vectors.shape[1]:
            return f"vectors must be float32 [N, W], W at least 1; found {vectors.dtype} {list(vectors.shape)}"
        if present.dtype != torch.bool or present.ndim != 1:
            return f"present must be bool [N]; found {present.dtype} {list(present.shape)}"
        if not len(self.item_ids) == len(vectors) == len(present):
            return f"{len(self.item_ids)} items, {len(vectors)} vectors and {len(present)} marks of presence"
        if not self.item_ids:
            return "there is no item"
        if not bool(vectors.isfinite().all()):
            return "a value is not finite"
        odd = [item_id for item_id in self.item_ids if not isinstance(item_id, str)]
        if odd:
            return f"item ids must be strings; found {odd[0]!r}"
        if len(set(self.item_ids)) != len(self.item_ids):
            twice, _ = Counter(self.item_ids).most_common(1)[0]
            return f"item {twice!r} occurs a second time"
        return None

    def of_items(self, item_ids: Sequence[str] | pl.Series, folder: Path) -> ItemText:
        """Return the vectors of these items; those that are not here count as without text.

        Raises:
            DataError: none of them is here, or has a text.
        """
        row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        rows = torch.tensor([row_of.get(item_id, -1) for item_id in item_ids], dtype=torch.int64)
        present = (rows >= 0) & self.present[rows]
        if not bool(present.any()):
            raise DataError(
                f"none of the data's {len(item_ids)} items has a text vector; the data have items like "
                f"{', '.join(map(repr, item_ids[:3]))}, the folder {', '.join(map(repr, self.item_ids[:3]))}",
                folder,
            )
        return ItemText(self.vectors[rows].masked_fill(~present[:, None], 0), present)


def check_free(folder: Path) -> None:
    """Refuse a place where something is: it would be replaced.

    Raises:
        DataError: `folder` is a file or in one, or it is a folder that is not empty.
    """
    file = next((parent for parent in folder.parents if parent.is_file()), None)
    if file is not None:
        raise DataError(f"no folder can be made here: {file} is a file", folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError("there is something here already; choose another --out or delete it", folder)
