"""model.json: the metadata needed to load an exported generator."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featgan.config.schema import GeneratorConfig
from featgan.errors import UserError
from featgan.run.checkpoint import CORRUPTED_REMEDY, read_json
from featgan.system.limits import MAX_CONDITION_DIM, MAX_COUNT, MAX_IMAGE_SIZE


class ModelMetadata(BaseModel):
    """model.json: the architecture, the condition, and the locations of the data and the classifier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    image_size: Annotated[int, Field(ge=4, le=MAX_IMAGE_SIZE)]
    condition_dim: Annotated[int, Field(ge=1, le=MAX_CONDITION_DIM)]
    """E, the width of the embedded condition: the values of all data sets, with the mask."""
    generator: GeneratorConfig
    condition_kind: str
    encoding: Literal["raw", "standardized", "components"]
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
        location = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {location}: {first['msg']}; {CORRUPTED_REMEDY}") from None
