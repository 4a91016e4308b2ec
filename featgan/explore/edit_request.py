"""The edit request that the page sends: one edit of one image, with bounds on every field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from featgan.config.base import ConfigModel
from featgan.errors import UserError
from featgan.report.edits.sweeps import format_signed

MAX_REQUEST_BYTES = 64 << 10
"""Maximum size of the JSON body of an edit request."""
MAX_VALUES = 4096
"""Maximum number of components or labels in one edit."""
MAX_STANDARD_DEVIATIONS = 50.0
"""Bound of component values: far outside the training images, and small enough that the networks do not overflow."""

EDIT_PHRASES = {
    "target_image": "{percent:.0f} % of the way to another image",
    "class": "factor {amount} toward the mean of {name}",
    "head": "{amount} SD along the weights of {name}",
    "component": "{name} at {value} SD",
    "label": "{name} {value}",
    "none": "no change",
}
"""Part of an edit => its description in the title of an exported image."""

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,64}$")]
ValueIndex = Annotated[int, Field(ge=0, lt=MAX_VALUES)]
StandardDeviations = Annotated[
    float, Field(ge=-MAX_STANDARD_DEVIATIONS, le=MAX_STANDARD_DEVIATIONS, allow_inf_nan=False)
]
LabelValue = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class ClassStep(ConfigModel):
    """A step along the direction of one class or output."""

    kind: Literal["class", "head"]
    """`class`: the class's mean features minus the mean over classes; `head`: the classifier's last-layer weights."""
    index: ValueIndex
    """Index of the class, or of the classifier's output."""
    amount: StandardDeviations
    """Multiple of the difference of means (`class`), or standard deviations along the weights (`head`)."""


class EditRequest(ConfigModel):
    """One edit of one image.

    The target features start at the source's features. They move toward those of the target image, then along the
    class step; the component values are set last.
    """

    client_id: Identifier
    """Identifies the open page; a newer request of the same page replaces its pending one."""
    image: Identifier
    """Image to edit."""
    target_image: Identifier | None = None
    """Image whose features the edit moves toward."""
    amount: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    """Fraction of the way to the features of `target_image`."""
    class_step: ClassStep | None = None
    """Step along the direction of a class."""
    component_values: dict[ValueIndex, StandardDeviations] = Field(default_factory=dict, max_length=MAX_VALUES)
    """Values of the components that are set, by index, in standard deviations; the other fields determine the rest."""
    labels: Annotated[tuple[LabelValue, ...], Field(max_length=MAX_VALUES)] | None = None
    """Target labels of a label-conditioned run; the source's labels by default."""
    dataset: Literal[0, 1] = 0
    """Data set that the labels belong to, for a run trained on two data sets."""
    include_difference: bool = False
    """Whether the response includes a difference map."""


def parse_edit_request(body: bytes) -> EditRequest:
    """Parse and validate a JSON body.

    Raises UserError that names the first invalid field.
    """
    try:
        return EditRequest.model_validate_json(body)
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        location = ".".join(str(key) for key in first_error["loc"]) or "request"
        raise UserError(f"{location}: {first_error['msg'].lower()}"[:200]) from None


@dataclass(frozen=True)
class DisplayNames:
    """Names of the classes, outputs, labels and components that an edit can refer to."""

    classes: Sequence[str] = ()
    outputs: Sequence[str] = ()
    labels: Sequence[str] = ()
    components: Mapping[int, str] = field(default_factory=dict)


def describe_edit(edit_request: EditRequest, display_names: DisplayNames) -> str:
    """Describe an edit in words, for the title of an exported image."""
    phrases = []
    if edit_request.target_image is not None:
        phrases.append(EDIT_PHRASES["target_image"].format(percent=100 * edit_request.amount))
    if edit_request.class_step is not None:
        phrases.append(describe_class_step(edit_request.class_step, display_names))
    for component, value in sorted(edit_request.component_values.items()):
        name = display_names.components.get(component, f"component {component + 1}")
        phrases.append(EDIT_PHRASES["component"].format(name=name, value=format_signed(value)))
    for index, value in enumerate(edit_request.labels or ()):
        name = name_or_number(display_names.labels, index)
        phrases += [EDIT_PHRASES["label"].format(name=name, value=format_signed(value))] if value else []
    return ", ".join(phrases) or EDIT_PHRASES["none"]


def describe_class_step(class_step: ClassStep, display_names: DisplayNames) -> str:
    """Describe a class step, such as `factor +2.00 toward the mean of happy`."""
    names = display_names.classes if class_step.kind == "class" else display_names.outputs
    name = name_or_number(names, class_step.index)
    return EDIT_PHRASES[class_step.kind].format(amount=format_signed(class_step.amount), name=name)


def name_or_number(names: Sequence[str], index: int) -> str:
    """Return the name at an index, or its number from 1 if there is no such name."""
    return names[index] if index < len(names) else str(index + 1)
