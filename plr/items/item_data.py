"""ItemData: everything that item encoders are built from, and its file in a run's folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plr.errors import DataError
from plr.files import atomic_path

_VERSION = "1"


@dataclass(frozen=True, eq=False)
class FeatureField:
    """One multi-valued attribute of V items: item v has the values `values[offsets[v]:offsets[v + 1]]`, maybe none.

    Attributes:
        name: the field's name.
        offsets: int64 [V + 1].
        values: int64 [N], value numbers 0..num_values-1, each of which some item has.
        value_names: what each number stands for; None where the run was made before it was kept.
    """

    name: str
    offsets: Tensor
    values: Tensor
    value_names: tuple[str, ...] | None = None

    @property
    def num_values(self) -> int:
        """How many different values there are."""
        return int(self.values.max()) + 1 if len(self.values) else 0

    @property
    def missing(self) -> int:
        """How many items have no value."""
        return int((self.offsets.diff() == 0).sum())


@dataclass(frozen=True, eq=False)
class ItemText:
    """A vector for the text of each of V items.

    Attributes:
        vectors: float32 [V, W], zeros where there is no text.
        present: bool [V], whether the item has a text.
    """

    vectors: Tensor
    present: Tensor

    def why_another_encoder(self, earlier: ItemText, rows: Tensor, its_rows: Tensor) -> str | None:
        """Say that vectors seem to be of another encoder than earlier ones: of the same items less than half are equal.

        Args:
            earlier: the vectors that a model was trained with.
            rows, its_rows: int64 [N], where the items are that both may have.

        Returns:
            None where half of the vectors are what they were but for rounding, and where both have none in common.
        """
        both = self.present[rows] & earlier.present[its_rows]
        one, other = self.vectors[rows[both]], earlier.vectors[its_rows[both]]
        same = (one - other).norm(dim=1) <= 0.01 * other.norm(dim=1)
        if 2 * int(same.sum()) >= len(same):
            return None
        return (
            f"{int((~same).sum()):,} of {len(same):,} items have other text vectors than before: their texts have "
            "changed, or the vectors are another encoder's, which mean nothing to these weights; "
            "`plr embed-text --like` makes vectors as those of an earlier folder"
        )


@dataclass(frozen=True, eq=False)
class ItemData:
    """What is known about items 0..V-1.

    Attributes:
        num_items: V.
        features: the fields of the feature file; none without one.
        text: the items' text vectors; None without any.
    """

    num_items: int
    features: tuple[FeatureField, ...] = ()
    text: ItemText | None = None

    def report(self) -> dict[str, Any]:
        """Return what there is and for how many items it is missing, ready for JSON."""
        report: dict[str, Any] = {}
        if self.features:
            report["features"] = {
                field.name: {"values": field.num_values, "items_without": field.missing} for field in self.features
            }
        if self.text is not None:
            report["text"] = {
                "width": self.text.vectors.shape[1],
                "items_without": int((~self.text.present).sum()),
            }
        return report

    def notes(self) -> list[str]:
        """Return a sentence for each thing that some items lack."""
        sentences = []
        for name, field in self.report().get("features", {}).items():
            if field["items_without"]:
                sentences.append(
                    f"{field['items_without']} of {self.num_items} items have no value in feature field {name!r}; "
                    "they share one learned vector for that"
                )
        without = self.report().get("text", {}).get("items_without")
        if without:
            sentences.append(
                f"{without} of {self.num_items} items have no text vector; they share one learned vector for that"
            )
        return sentences

    @property
    def content_hash(self) -> str | None:
        """SHA-256 (hex) of all of it but V; None where nothing but V is known."""
        tensors = self._tensors()
        if not tensors:
            return None
        digest = hashlib.sha256(json.dumps([field.name for field in self.features]).encode())
        for name, tensor in tensors.items():
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        names = json.dumps([field.name for field in self.features])
        metadata = {"version": _VERSION, "num_items": str(self.num_items), "features": names}
        if self.features and all(field.value_names is not None for field in self.features):
            metadata["values"] = json.dumps([field.value_names for field in self.features])
        with atomic_path(path) as aside:
            save_file(self._tensors(), aside, metadata)

    @classmethod
    def load(cls, path: Path) -> ItemData:
        """Read what `save` wrote.

        Raises:
            DataError: the file is not such a file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise DataError(f"not a safetensors file ({error})", path) from error
        if metadata.get("version") != _VERSION:
            raise DataError(f"not item data of version {_VERSION}; its metadata are {metadata}", path)
        names = json.loads(metadata["features"])
        values = json.loads(metadata.get("values", "null"))  # null: of an earlier version
        features = tuple(
            FeatureField(
                name,
                tensors[f"features.{number}.offsets"],
                tensors[f"features.{number}.values"],
                None if values is None else tuple(values[number]),
            )
            for number, name in enumerate(names)
        )
        text = ItemText(tensors["text.vectors"], tensors["text.present"]) if "text.vectors" in tensors else None
        return cls(int(metadata["num_items"]), features, text)

    def _tensors(self) -> dict[str, Tensor]:
        # Fields by number: a field's name may be anything, a tensor's name in the file may not.
        tensors: dict[str, Tensor] = {}
        for number, field in enumerate(self.features):
            tensors[f"features.{number}.offsets"] = field.offsets
            tensors[f"features.{number}.values"] = field.values
        if self.text is not None:
            tensors["text.vectors"] = self.text.vectors.float().contiguous()
            tensors["text.present"] = self.text.present
        return tensors
