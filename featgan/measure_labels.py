"""What an evaluation does with a model of labels: a judge, fitted on the same labels, takes the black box's place."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.load import BlackBox
from featgan.conditions import Condition, ConditionLayout
from featgan.data.shards import Split
from featgan.images import to_float, to_uint8
from featgan.measure import Table, ask
from featgan.metrics import controls, decisions, preservation, realism
from featgan.metrics.intervals import Floats, as_floats
from featgan.metrics.response import Response
from featgan.model import Model


@dataclass(frozen=True)
class LabelSubject:
    """A model and one of the data sets it was trained on, with a judge of that data set's labels if there is one."""

    model: Model
    split: Split
    condition: Condition
    layout: ConditionLayout
    dataset: int
    judge: BlackBox | None

    def edit(self, images: Tensor, labels: Tensor) -> Tensor:
        """G(x, c), rounded to the 256 levels a picture has."""
        return to_float(to_uint8(self.model.edit(images, self.layout.embed(labels, self.dataset))))

    def decide(self, seen: Response, asked: Response, source: Response) -> Table:
        """The decision measures that fit the labels; `asked` holds labels as outputs, the others the judge's."""
        assert seen.outputs is not None and asked.outputs is not None and source.outputs is not None
        kind, names = self.condition.config.kind, self.condition.names
        if kind == "expression":
            labels = [each.outputs.argmax(1) for each in (source, asked, seen) if each.outputs is not None]
            return decisions.label_table(labels[0], labels[1], labels[2], names)
        if kind == "valence_arousal":
            return decisions.valence_arousal_table(asked.outputs, seen.outputs)
        return decisions.attribute_table(source.outputs > 0, asked.outputs > 0.5, seen.outputs > 0, names)


def measure_labels(subject: LabelSubject, count: int) -> Mapping[str, Table]:
    """Preservation; with a judge, whether the edits obey, beside controls, and their Frechet distance in its space.

    `count` validation images, at most, are asked to show the labels of another of them, fixed by a seed.
    """
    rows = np.random.default_rng(0).permutation(subject.condition.rows)[:count]
    own = torch.from_numpy(subject.condition.values(rows, np.zeros(len(rows), bool)))
    other = controls.derangement(len(rows), 0)
    images = to_float(subject.split.decode(rows))
    edited = subject.edit(images, own[other])
    tables: dict[str, Table] = {
        "preservation": preservation.preservation_table(
            images, subject.edit(images, own), subject.edit(edited, own), edited
        )
    }
    if subject.judge is None:
        return tables
    source, seen = (read(subject, pictures) for pictures in (images, edited))
    shuffled = subject.edit(images, own[other][controls.derangement(len(rows), 1)])
    asked = Response(source.features, as_floats(own[other]))
    responses = {
        "generator": seen,
        "identity_copy": source,
        "shuffled_condition": read(subject, shuffled),
        # What the judge says of the real images whose labels are asked for: its own errors bound what can be reached.
        "ceiling_real": source.take(other),
    }
    for name, response in responses.items():
        tables[name] = subject.decide(response, asked, source)
    tables["realism"] = measure_realism(source.features, seen.features)
    return tables


def read(subject: LabelSubject, images: Tensor) -> Response:
    """What the judge sees; outputs in the order of the condition's names."""
    assert subject.judge is not None
    seen = ask(subject.judge, images)
    assert seen.outputs is not None
    columns = [list(subject.judge.class_names).index(name) for name in subject.condition.names]
    return Response(seen.features, seen.outputs[:, columns])


def measure_realism(real: Floats, edited: Floats) -> Table:
    """Frechet distance in the judge's space, features in deviations of the real ones; the floor as in `measure`."""
    deviations = real.std(0)
    live = deviations > 1e-6 * max(deviations.max(), 1e-12)
    real, edited = real[:, live] / deviations[live], edited[:, live] / deviations[live]
    half = len(real) // 2
    first, second = real[:half], real[half : 2 * half]
    return realism.realism_table({"edited": (first, edited[half : 2 * half]), "real_floor": (first, second)})
