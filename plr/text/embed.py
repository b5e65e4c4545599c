"""embed_text: a file of item texts -> a folder of text vectors."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from plr.errors import DataError
from plr.text.sentence import Pca, encode_sentences, fit_pca
from plr.text.table import TextTable, read_texts
from plr.text.tfidf import TfidfSvd, fit_tfidf
from plr.text.vectors import TextVectors, check_free
from plr.version import __version__

__all__ = ["TFIDF", "embed_text"]

TFIDF = "tfidf"
_TFIDF_WIDTH = 768  # that of the language models which UniSRec was made with
_MARKS = "marks_in_words"  # in the manifest: TfidfSvd.marks; not there: False, as words were cut before


def embed_text(
    file: Path,
    out: Path | None,
    *,
    encoder: str | None = None,
    dim: int | None = None,
    like: Path | None = None,
    item_column: str | None = None,
    text_columns: Sequence[str] | None = None,
) -> TextVectors:
    """Turn every item's text into a vector and write the folder.

    Args:
        file: the texts (see `read_texts`).
        out: the folder to be made.
        encoder: "tfidf" (the default) is fitted to these texts; any other name is a model of sentence-transformers.
        dim: the width wanted: of tfidf how many components (by default 768; fewer where there are no more), of a model
            the principal components kept (by default its own width).
        like: a folder made earlier: encode as it was encoded, with nothing fitted again. Excludes encoder and dim.
        item_column: see `read_texts`.
        text_columns: see `read_texts`.

    Raises:
        DataError: the file, the options or the encoder cannot be used, or there is something at `out`.
    """
    if out is None:
        raise DataError("--out is missing: name the folder for the vectors")
    check_free(out)
    if like is not None and (encoder is not None or dim is not None):
        raise DataError("like takes encoder and dim from its folder; leave them out")
    if dim is not None and dim < 1:
        raise DataError(f"dim must be at least 1; found {dim}")
    earlier = None if like is None else _fitted_encoder(like)
    table = read_texts(file, item_column, text_columns)
    readable = [text for text in table.texts if text]
    if not readable:
        raise DataError(f"no item has a text in {', '.join(table.text_columns)}", file)
    name = (encoder or TFIDF) if earlier is None else earlier.manifest["encoder"]
    present = torch.tensor([bool(text) for text in table.texts])
    fitted, vocabulary = ({}, None) if earlier is None else (earlier.fitted, earlier.vocabulary)
    marks = earlier is None or bool(earlier.manifest.get(_MARKS))
    if name == TFIDF:
        if earlier is None:
            try:
                tfidf = fit_tfidf(readable, dim or _TFIDF_WIDTH)
            except ValueError as error:
                raise DataError(str(error), file) from error
            fitted, vocabulary = {"idf": tfidf.idf, "components": tfidf.components}, tfidf.vocabulary
        assert vocabulary is not None
        encoded, known = TfidfSvd(vocabulary, fitted["idf"], fitted["components"], marks).encode(readable)
    else:
        encoded = encode_sentences(name, readable)
        known = torch.ones(len(encoded), dtype=torch.bool)
        if earlier is None and dim is not None and dim != encoded.shape[1]:
            pca = fit_pca(encoded, dim)
            fitted = {"mean": pca.mean, "components": pca.components}
        if fitted:
            encoded = Pca(fitted["mean"], fitted["components"])(encoded)
    vectors = torch.zeros(len(present), encoded.shape[1])
    vectors[present] = encoded
    with_text = present.clone()
    present[with_text] = known
    result = TextVectors(
        table.item_ids,
        vectors,
        present,
        {
            "encoder": name,
            "width": vectors.shape[1],
            "items": len(present),
            "without_text": int((~with_text).sum()),
            "without_known_word": int((~known).sum()),
            "source": _source(file, table),
            "fitted_on": _source(file, table) if earlier is None else earlier.manifest["fitted_on"],
            "versions": _versions(name),
            **({_MARKS: marks} if name == TFIDF else {}),
        },
        fitted,
        vocabulary,
    )
    result.save(out)
    return result


def _fitted_encoder(like: Path) -> TextVectors:
    """Read a folder and see that it holds what encodes further texts."""
    earlier = TextVectors.load(like)
    lacking = [name for name in ("encoder", "fitted_on") if name not in earlier.manifest]
    if not lacking and earlier.manifest["encoder"] == TFIDF:
        lacking = [name for name in ("idf", "components") if name not in earlier.fitted]
        lacking += ["vocabulary"] if earlier.vocabulary is None else []
    if lacking:
        raise DataError(f"no more texts can be encoded like these: {', '.join(lacking)} is missing, which "
                        "`plr embed-text` writes", like)  # fmt: skip
    return earlier


def _source(file: Path, table: TextTable) -> dict[str, Any]:
    return {
        "file": file.name,
        "sha256": table.sha256,
        "item_column": table.item_column,
        "text_columns": list(table.text_columns),
    }


def _versions(encoder: str) -> dict[str, str]:
    packages = ["torch", *([] if encoder == TFIDF else ["sentence-transformers", "transformers"])]
    return {"plr": __version__, **{package: version(package) for package in packages}}
