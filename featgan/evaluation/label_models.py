"""What an evaluation does with a model of labels: a judge, fitted on the same labels, takes the black box's place."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox
from featgan.data.conditions import Condition, ConditionLayout
from featgan.data.shards.shard_set import Split
from featgan.evaluation.edit_metrics import Family, Table, measure_inception
from featgan.evaluation.evaluators import Observers
from featgan.evaluation.subgroups import RegionFamily, decision_scores, measure_region, picture_scores
from featgan.evaluation.sweeps import EQUAL_REQUESTS, EQUAL_SOURCES, EqualRequests, measure_diversity
from featgan.inference.editor import Editor, ask
from featgan.metrics import baselines, decisions, preservation, realism
from featgan.metrics.bootstrap import Booleans, Integers, as_floats
from featgan.metrics.predictions import Response, standardize_by
from featgan.metrics.preservation import EditSizes, mean_colours
from featgan.metrics.subgroups import class_regions, octant_regions


@dataclass(frozen=True)
class LabelSubject:
    """An editor, one of the data sets that its model was trained on, and a judge of that data set's labels if any."""

    editor: Editor
    split: Split
    condition: Condition
    layout: ConditionLayout
    dataset: int
    judge: BlackBox | None

    def edit(self, images: Tensor, labels: Tensor) -> Tensor:
        """G(x, c) for labels [N, C_i] of this data set."""
        return self.editor.edit(images, self.layout.embed(labels, self.dataset))

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


@dataclass(frozen=True)
class LabelEdits:
    """N validation images asked to show the labels of another of them, fixed by a seed."""

    own: Tensor  # labels [N, C_i]
    others: Integers  # [N], the place of each pair's target
    images: dict[str, Tensor]  # uint8 [N, 3, S, S]: what stands for the edit in each column
    kept: Tensor
    returned: Tensor
    sizes: dict[str, EditSizes]
    asked: Booleans | None  # pairs whose label is asked to change

    @property
    def sources(self) -> Tensor:
        return self.images["identity_copy"]


def edit_labels(subject: LabelSubject, count: int) -> LabelEdits:
    """Edit at most `count` images to another's labels, to another pair's, to their own, and back."""
    rows = np.random.default_rng(0).permutation(subject.condition.rows)[:count]
    own = torch.from_numpy(subject.condition.values(rows, np.zeros(len(rows), bool)))
    others, images = baselines.derangement(len(rows), 0), subject.split.decode(rows)
    with subject.editor.showing("editing", 4 * len(rows)):
        edited = subject.edit(images, own[others])
        shuffled = subject.edit(images, own[others][baselines.derangement(len(rows), 1)])
        kept, returned = subject.edit(images, own), subject.edit(edited, own)
    shown = {
        "generator": edited,
        "identity_copy": images,
        "shuffled_condition": shuffled,
        "ceiling_real": images[others],  # real images whose labels are asked for
    }
    sizes = {name: EditSizes.of(images, each) for name, each in shown.items()}
    labels = Response(as_floats(own), as_floats(own))
    asked = decisions.asked_to_change(subject.condition.config.kind, labels, labels.take(others))
    return LabelEdits(own, others, shown, kept, returned, sizes, asked)


def measure_labels(
    subject: LabelSubject, count: int, observers: Observers | None = None
) -> tuple[Mapping[str, Family], list[RegionFamily]]:
    """Preservation and diversity; with a judge, whether the edits obey, and how real they are in its space.

    Beside controls, and by region of the labels asked for.
    """
    observers = observers or Observers()
    edits = edit_labels(subject, count)
    equal = ask_all_the_same(subject, edits)
    families = {"preservation": preserved(edits, observers), "diversity": measure_diversity(equal)}
    if observers.inception is not None:
        family = measure_inception(observers.inception, edits.images)
        families["realism"] = {
            column: {f"inception_{name}": found for name, found in table.items()} for column, table in family.items()
        }
    if subject.judge is None:
        return families, label_regions(subject, edits, {})
    # What the judge says of the real images whose labels are asked for: its own errors bound what can be reached.
    source = read(subject, edits.sources)
    seen = {
        "generator": read(subject, edits.images["generator"]),
        "identity_copy": source,
        "shuffled_condition": read(subject, edits.images["shuffled_condition"]),
        "ceiling_real": source.take(edits.others),
    }
    asked = Response(source.features, as_floats(edits.own[edits.others]))
    families["faithfulness"] = {name: subject.decide(response, asked, source) for name, response in seen.items()}
    scaled = {name: standardize_by(source.features, response.features) for name, response in seen.items()}
    half = realism.judged_half(len(source))
    judged = realism.realism_family(scaled["identity_copy"], {name: each[half] for name, each in scaled.items()})
    for column, table in judged.items():
        families.setdefault("realism", {}).setdefault(column, {}).update(table)
    return families, label_regions(subject, edits, seen)


def preserved(edits: LabelEdits, observers: Observers) -> Family:
    """What stays, in pixels."""
    images, asked, lpips = edits.sources, edits.asked, observers.lpips
    pairs = {"generator": (edits.kept, edits.returned), "identity_copy": (images, images)}
    found = {}
    for name, shown in edits.images.items():
        kept, returned = pairs.get(name, (None, None))
        found[name] = preservation.preservation_table(images, kept, returned, shown, asked, lpips, edits.sizes[name])
    jpeg = baselines.jpeg_round_trip(images)
    return found | {"ceiling_jpeg": preservation.preservation_table(images, jpeg, None, jpeg, asked, lpips)}


def ask_all_the_same(subject: LabelSubject, edits: LabelEdits) -> EqualRequests:
    """Edit many sources to one label, and to the next."""
    images = edits.sources[:EQUAL_SOURCES]
    requests = torch.unique(edits.own, dim=0)[:EQUAL_REQUESTS]
    with subject.editor.showing("asking all for the same", len(requests) * len(images)):
        edited = [subject.edit(images, request.expand(len(images), -1)) for request in requests]
    return EqualRequests(images, edited)


def label_regions(subject: LabelSubject, edits: LabelEdits, seen: Mapping[str, Response]) -> list[RegionFamily]:
    """By class, or by octant of valence and arousal; the judge's answers where there is one, and the pictures."""
    kind, asked = subject.condition.config.kind, as_floats(edits.own[edits.others])
    deviations = mean_colours(edits.sources).std(0)
    scores = {name: picture_scores(sizes, deviations) for name, sizes in edits.sizes.items()}
    wanted = Response(asked, asked)
    for name, response in seen.items():
        scores[name] = decision_scores(kind, seen["identity_copy"], wanted, response) | scores[name]
    if kind == "expression":
        regions = class_regions(asked.argmax(1), subject.condition.names)
    else:
        regions = octant_regions(asked) if kind == "valence_arousal" else []
    return [measure_region(region, scores) for region in regions]


def read(subject: LabelSubject, images: Tensor) -> Response:
    """What the judge sees; outputs in the order of the condition's names."""
    assert subject.judge is not None
    seen = ask(subject.judge, images)
    assert seen.outputs is not None
    columns = [list(subject.judge.class_names).index(name) for name in subject.condition.names]
    return Response(seen.features, seen.outputs[:, columns])
