"""Provides ModelReference: what a model is loaded by, so that another process can load the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from hopscope.errors import ModelError, UsageError


@dataclass(frozen=True)
class ModelReference:
    """How a model is loaded.

    Attributes:
        source: a name, a hub id, or a folder or file as an absolute path.
        name: what it is called in results; what `source` gives if None.
        dtype: such as `bfloat16`; the usual one of the device if None.
        quantization: `nf4`, `int8` or `fp8`; None for the weights as they are.
        trust_remote_code, allow_pickle: as for `load_model`.
        sha256: of the weights; None if they were not loaded yet.
    """

    source: str
    name: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    sha256: str | None = None

    @classmethod
    def of(cls, source: str | Path, **options: Any) -> Self:
        """The reference of what a user gives; a folder or a `.gguf` file by its whole path.

        Args:
            source: a name, hub id, folder or file.
            **options: the other attributes.
        """
        path = Path(source).expanduser()
        local = (path / "config.json").is_file() or path.is_file()
        return cls(str(path.resolve()) if local else str(source), **options)

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Self:
        """The reference that `as_json` has written."""
        return cls(**written)

    def as_json(self) -> dict[str, Any]:
        """What a record says: what is not as usual."""
        usual = asdict(type(self)(self.source))
        return {
            name: value
            for name, value in asdict(self).items()
            if name == "source" or value != usual[name]
        }

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `load_any`, but for the place of the model."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "trust_remote_code": self.trust_remote_code,
            "allow_pickle": self.allow_pickle,
        }

    def check(self, sha256: str) -> None:
        """Check that a model that was loaded by this reference has the weights that are meant.

        Raises:
            ModelError: if it has not.
        """
        if self.sha256 not in (None, sha256):
            raise ModelError(
                f"{self.source} gives weights with the sha256 {sha256[:12]}, and the run is of "
                f"{str(self.sha256)[:12]}: the model was changed after it was loaded, or the files "
                "were. Save the model with save_pretrained, and give the folder"
            )


def reference_of(model: Any) -> ModelReference:
    """What a model is loaded by elsewhere.

    Args:
        model: a loaded model, a reference, or what a reference is made of.

    Raises:
        UsageError: for anything else.
    """
    if isinstance(model, ModelReference):
        return model
    if isinstance(model, str | Path):
        return ModelReference.of(model)
    if not hasattr(model, "reference"):
        raise UsageError(
            "model must be one that hs.load_model gives, or a name, folder or hub id, not "
            f"a {type(model).__name__}"
        )
    found = model.reference
    if found is None:  # it was given as an object: by its name, if that gives the same weights
        dtype = None if model.quantization else str(model.dtype).removeprefix("torch.")
        found = ModelReference(model.name, model.name, dtype)
    return ModelReference(**{**asdict(found), "sha256": model.fingerprint})
