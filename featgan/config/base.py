"""What every group of configuration fields is: frozen, and strict about names."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen group of fields that knows no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
