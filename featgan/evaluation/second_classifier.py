"""What an evaluation asks of a witness: does a box that took no part in training see the change as well?"""

from dataclasses import dataclass

from featgan.evaluation.edit_metrics import Edits, Family, FeatureSubject, Table
from featgan.evaluation.evaluators import Witness
from featgan.evaluation.sweeps import EqualRequests, diversity_family
from featgan.metrics import realism
from featgan.metrics.bootstrap import Floats, mean_measure
from featgan.metrics.decisions import decision_table
from featgan.metrics.diversity import pairwise_distance
from featgan.metrics.faithfulness import centred_cosine, shift_table
from featgan.metrics.model_agreement import Seen, agreement_table, confirmations
from featgan.metrics.predictions import Response, standardize_by

SHOWN = {"generator": "edits", "shuffled_condition": "shuffled"}
"""Columns whose pictures are not real ones, so that the witness has to look at them, and what they are."""


@dataclass(frozen=True)
class Testimony:
    """What a witness said of the sources, of what stands for their edits, and of their reconstructions."""

    source: Response
    seen: dict[str, Response]  # the generator's, then each control's
    kept: Response

    def standardized(self, response: Response) -> Floats:
        """Features in deviations of the sources'."""
        return standardize_by(self.source.features, response.features)


def hear_witness(subject: FeatureSubject, edits: Edits, witness: Witness) -> Testimony:
    """Show it every set of pictures once; of real ones it may have spoken before."""
    source = witness.real("validation", edits.pairs.source_rows)
    shown = {name: witness.see(edits.images[name], what) for name, what in SHOWN.items()}
    seen = {
        "generator": shown["generator"],
        "identity_copy": source,
        "shuffled_condition": shown["shuffled_condition"],
        "nearest_real": witness.real("train", subject.known_rows[edits.nearest]),
        "ceiling_real": source.take(edits.pairs.others),
    }
    return Testimony(source, seen, witness.see(edits.kept, "kept"))


def measure_agreement(subject: FeatureSubject, edits: Edits, witness: Witness, heard: Testimony) -> Family:
    """Does it decide as asked, like the first box, and move towards the target's features as it sees them?"""
    source, target = heard.standardized(heard.source), heard.standardized(heard.seen["ceiling_real"])
    found: Family = {}
    for name, seen in heard.seen.items():
        shift = shift_table(source, target, heard.standardized(seen))
        found[name] = decide(subject, edits, witness, heard, name)
        found[name]["witness_shift_aggregate"] = shift["shift_aggregate"]
    return found


def decide(subject: FeatureSubject, edits: Edits, witness: Witness, heard: Testimony, column: str) -> Table:
    """Decisions of both boxes where both tell expressions; else the witness's outputs where they are of one kind."""
    kind, names = subject.cache.output_kind, subject.cache.class_names
    seen, box, target = heard.seen[column], edits.seen.get(column, edits.target), edits.target
    before, after = edits.source.outputs, box.outputs
    other_before, other_after = heard.source.outputs, seen.outputs
    if before is None or after is None or target.outputs is None or other_before is None or other_after is None:
        return {}
    if kind == witness.box.output_kind == "expression":
        assert edits.asked is not None
        first = Seen(before, after, names)
        second = Seen(other_before, other_after, witness.box.class_names)
        return agreement_table(first, second, target.outputs, edits.asked)
    if kind == witness.box.output_kind and tuple(names) == tuple(witness.box.class_names):
        table = decision_table(kind, heard.source, target, seen, names)
        return {f"witness_{name}": found for name, found in table.items()}
    return {}


def measure_witnessed_realism(heard: Testimony) -> Family:
    """Distances of edited images to real ones in its space."""
    half = realism.judged_half(len(heard.source))
    seen = {name: heard.standardized(response)[half] for name, response in heard.seen.items()}
    return realism.realism_family(heard.standardized(heard.source), seen)


def measure_identity(heard: Testimony) -> Family:
    """Cosine of the witness's features before and after: of nothing asked (self), and of the edit."""
    source = heard.standardized(heard.source)
    found: Family = {"generator": {"self_cosine": mean_measure(centred_cosine(source, heard.standardized(heard.kept)))}}
    for name, seen in heard.seen.items():
        cosines = centred_cosine(source, heard.standardized(seen))
        found.setdefault(name, {})["edit_cosine"] = mean_measure(cosines)
    return found


def measure_witnessed_diversity(equal: EqualRequests, witness: Witness, heard: Testimony) -> Family:
    """Do different sources stay different in its space when the same is asked of all?"""
    source = heard.standardized(heard.source)[: len(equal.sources)]
    edited = [pairwise_distance(heard.standardized(witness.see(images, "same request"))) for images in equal.edited]
    return diversity_family(pairwise_distance(source), edited)


def confirm(subject: FeatureSubject, edits: Edits, witness: Witness, heard: Testimony) -> dict[str, Floats]:
    """By column and pair: 1 where the witness sees the label asked for, else 0; empty where it tells no expressions."""
    if not subject.cache.output_kind == witness.box.output_kind == "expression" or edits.asked is None:
        return {}
    wanted, names = edits.target.outputs, subject.cache.class_names
    assert wanted is not None
    return {
        name: confirmations(Seen(seen.outputs, seen.outputs, witness.box.class_names), names, wanted, edits.asked)
        for name, seen in heard.seen.items()
        if seen.outputs is not None
    }
