"""What the page may ask for: one edit of one picture, every part of it bounded, whatever was sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from featgan.config.base import Section
from featgan.errors import UserError
from featgan.report.edits.sweeps import signed

MOST_BYTES = 64 << 10
"""Of an edit as it is sent."""
MOST_NUMBERS = 4096
"""Components or labels of one edit."""
MOST_DEVIATIONS = 50.0
"""Farther out no training image lies, and the numbers of the networks overflow sooner or later."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,64}$")]
Deviations = Annotated[float, Field(ge=-MOST_DEVIATIONS, le=MOST_DEVIATIONS, allow_inf_nan=False)]
Label = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class Push(Section):
    """A step along a direction of the classes."""

    kind: Literal["class", "head"]
    """Along the difference of a class's mean features, or along the weights of the box's last layer."""
    index: Annotated[int, Field(ge=0, lt=MOST_NUMBERS)]
    """Of the class, or of the box's output."""
    amount: Deviations
    """Times the difference of the means, or deviations along the weights."""


class Ask(Section):
    """One edit: the picture's own features, moved towards those of another, pushed, and components set last."""

    session: Name
    """Of the open page: of its edits only the newest waits."""
    picture: Name
    """What is edited."""
    second: Name | None = None
    """The picture whose features are moved to."""
    amount: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    """How far to those of `second`."""
    push: Push | None = None
    """A step along a class's direction."""
    pins: Annotated[dict[Annotated[int, Field(ge=0, lt=MOST_NUMBERS)], Deviations], Field(max_length=MOST_NUMBERS)] = {}
    """Components that are set, in deviations; all others follow from the rest."""
    labels: Annotated[tuple[Label, ...], Field(max_length=MOST_NUMBERS)] | None = None
    """For a run on labels: the condition; the picture's own by default."""
    dataset: Literal[0, 1] = 0
    """Whose labels they are, for a run on two data sets."""
    difference: bool = False
    """Whether the map of what changed is wanted."""


def parse_ask(body: bytes) -> Ask:
    """What was sent, checked; UserError names the first part that is not allowed."""
    try:
        return Ask.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the request"
        raise UserError(f"{where}: {first['msg'].lower()}"[:200]) from None


@dataclass(frozen=True)
class Words:
    """What the parts of an edit are called."""

    classes: Sequence[str] = ()
    outputs: Sequence[str] = ()
    labels: Sequence[str] = ()
    components: Mapping[int, str] = field(default_factory=dict)


def describe(ask: Ask, words: Words) -> str:
    """What is asked for, in words."""
    parts = []
    if ask.second is not None:
        parts.append(f"{100 * ask.amount:.0f} % of the way to another image")
    if ask.push is not None:
        names, way = (words.classes, "mean of") if ask.push.kind == "class" else (words.outputs, "weights of")
        parts.append(f"{signed(ask.push.amount)} along the {way} {name_of(names, ask.push.index)}")
    for component, value in sorted(ask.pins.items()):
        parts.append(f"{words.components.get(component, f'component {component + 1}')} at {signed(value)}")
    for index, value in enumerate(ask.labels or ()):
        parts += [f"{name_of(words.labels, index)} {signed(value)}"] if value else []
    return ", ".join(parts) or "nothing asked"


def name_of(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else str(index + 1)
