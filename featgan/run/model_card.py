"""model.json: the metadata needed to load an exported generator."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from featgan.config.schema import GeneratorConfig
from featgan.errors import UserError
from featgan.run.checkpoint import read_json


class ModelMetadata(BaseModel):
    """model.json: the architecture, the condition, and the locations of the data and the classifier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    image_size: int
    condition_dim: int
    generator: GeneratorConfig
    condition_kind: str
    encoding: str
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    blackbox: dict[str, str] | None
    dataset: dict[str, str | None]


def read_model_metadata(path: Path) -> ModelMetadata:
    """Read and validate model.json. Raises UserError if it is invalid."""
    content: Any = read_json(path)
    try:
        return ModelMetadata.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
