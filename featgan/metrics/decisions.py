"""Does the box's own decision follow the request: labels, valence and arousal, and how few components suffice?"""

from collections.abc import Mapping, Sequence

import numpy as np

from featgan.metrics.bootstrap import Booleans, Floats, Integers, Measure, divide, mean_measure, measure
from featgan.metrics.faithfulness import weighted_concordance, weighted_moments
from featgan.metrics.predictions import Response

NUM_OCTANTS = 8
"""Sectors of 45 degrees of the valence-arousal circle, the first from valence 1 towards arousal 1."""


def macro_f1(asked: Integers, decided: Integers, seed: int = 0) -> Measure:
    """F1 of each class asked for, averaged over those classes [0, 1]: two [N] of labels."""
    wanted, given = (np.equal.outer(labels, np.unique(asked)).astype(np.float64) for labels in (asked, decided))

    def score(weights: Floats) -> Floats:
        # 2 TP / (2 TP + FP + FN) of every class, for all resamples at once.
        return divide(2 * (weights @ (wanted * given)), weights @ (wanted + given)).mean(1)

    return measure(score, len(asked), seed)


def asked_to_change(kind: str, source: Response, target: Response) -> Booleans | None:
    """Pairs of which another decision is asked [N], by a box's outputs for sources and targets; None where it has none.

    A decision is the largest output of an expression box, the octant of valence and arousal, or all attributes.
    """
    if source.outputs is None or target.outputs is None:
        return None
    if kind == "expression":
        return np.asarray(source.outputs.argmax(1) != target.outputs.argmax(1))
    if kind == "valence_arousal":
        return np.asarray(octants(source.outputs) != octants(target.outputs))
    if kind == "attributes":
        return np.asarray(((source.outputs > 0) != (target.outputs > 0)).any(1))
    return None


def flip_success(before: Integers, asked: Integers, decided: Integers) -> Floats:
    """1 where the decision became the asked one, else 0; not a number where no change was asked: three [N] => [N]."""
    return np.where(before == asked, np.nan, (decided == asked).astype(np.float64))


def label_table(
    before: Integers, asked: Integers, decided: Integers, class_names: Sequence[str] = (), seed: int = 0
) -> dict[str, Measure]:
    """Agreement of decisions with the labels asked for, overall and by class; `before` holds the source's decisions.

    Labels asked for that are negative (unknown) are left out.
    """
    known = asked >= 0
    before, asked, decided = before[known], asked[known], decided[known]
    agrees = (asked == decided).astype(np.float64)
    table = {
        "label_agreement": mean_measure(agrees, seed),
        "label_macro_f1": macro_f1(asked, decided, seed),
        "flip_success": mean_measure(flip_success(before, asked, decided), seed),
        "flip_rate": flip_rate(before, decided, seed),
    }
    for label in np.unique(asked).tolist():
        name = class_names[label] if label < len(class_names) else str(label)
        table[f"label_agreement_{name}"] = mean_measure(agrees[asked == label], seed)
    return table


def octants(targets: Floats) -> Integers:
    """Sector of the valence-arousal circle of each [N, 2], 0 to 7."""
    angles = np.arctan2(targets[:, 1], targets[:, 0]) % (2 * np.pi)
    return np.minimum(angles // (2 * np.pi / NUM_OCTANTS), NUM_OCTANTS - 1).astype(np.int64)


def regression_table(names: Sequence[str], asked: Floats, measured: Floats, seed: int = 0) -> dict[str, Measure]:
    """CCC, Pearson correlation, root mean squared error and sign agreement of each named output of [N, len(names)]."""
    table: dict[str, Measure] = {}
    for index, name in enumerate(names):
        known = np.isfinite(asked[:, index])
        pair = asked[known, index], measured[known, index]
        table |= {f"{name}_{statistic}": found for statistic, found in output_table(*pair, seed).items()}
    return table


def output_table(asked: Floats, measured: Floats, seed: int = 0) -> dict[str, Measure]:
    """The same for one output: two [N]."""
    first, second, count = asked[:, None], measured[:, None], len(asked)

    def pearson(weights: Floats) -> Floats:
        _, variance_first, variance_second, covariance = weighted_moments(weights, first, second)
        return divide(covariance, np.sqrt(variance_first * variance_second))[:, 0]

    return {
        "ccc": measure(lambda weights: weighted_concordance(weights, first, second)[:, 0], count, seed),
        "pearson": measure(pearson, count, seed),
        "rmse": measure(lambda weights: np.sqrt(weights @ (asked - measured) ** 2), count, seed),
        "sign_agreement": mean_measure((np.sign(asked) == np.sign(measured)).astype(np.float64), seed),
    }


def valence_arousal_table(asked: Floats, measured: Floats, seed: int = 0) -> dict[str, Measure]:
    """Both outputs [N, 2], then the distance by octant of the request: averages hide failure in rare regions."""
    table = regression_table(("valence", "arousal"), asked, measured, seed)
    known = np.isfinite(asked).all(1)
    squares = ((asked[known] - measured[known]) ** 2).sum(1)
    sectors = octants(asked[known])
    for sector in np.unique(sectors).tolist():
        table[f"valence_arousal_rmse_octant_{sector + 1}"] = root_mean(squares[sectors == sector], seed)
    return table


def root_mean(squares: Floats, seed: int) -> Measure:
    """Root of the mean of [N] squares."""
    return measure(lambda weights: np.sqrt(weights @ squares), len(squares), seed)


def attribute_table(
    before: Booleans, asked: Booleans, decided: Booleans, names: Sequence[str] = (), seed: int = 0
) -> dict[str, Measure]:
    """Attributes present or not [N, A], as the box decides for the source, as asked, and as it decides afterwards.

    Agreement over all attributes, then success where a change is asked (flips) and where none is (kept); by attribute
    the agreement. Each image counts once, whatever the number of its changes.
    """
    agrees, changes = asked == decided, before != asked
    table = {"attribute_agreement": mean_measure(agrees.mean(1), seed)}
    for name, chosen in (("flip_success", changes), ("attributes_kept", ~changes)):
        count = chosen.sum(1)
        share = np.divide((agrees & chosen).sum(1), count, out=np.full(len(count), np.nan), where=count > 0)
        table[name] = mean_measure(share, seed)
    for index, name in enumerate(names):
        table[f"attribute_agreement_{name}"] = mean_measure(agrees[:, index].astype(np.float64), seed)
    return table


def decision_table(
    output_kind: str,
    source: Response,
    target: Response,
    measured: Response,
    names: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Measure]:
    """The decision measures that fit the outputs: `expression`, `valence_arousal`, `attributes`, `factors`; else none.

    Requests are the box's own outputs for the images whose features were asked for. Empty where outputs are unknown.
    `names` are the names of an expression box's classes, or of an attribute or factor box's outputs.
    """
    if source.outputs is None or target.outputs is None or measured.outputs is None:
        return {}
    if output_kind == "expression":
        labels = [each.outputs.argmax(1) for each in (source, target, measured) if each.outputs is not None]
        return label_table(labels[0], labels[1], labels[2], names, seed)
    if output_kind == "valence_arousal":
        return valence_arousal_table(target.outputs, measured.outputs, seed)
    if output_kind == "attributes":
        return attribute_table(source.outputs > 0, target.outputs > 0, measured.outputs > 0, names, seed)
    if output_kind == "factors":
        return regression_table(names, target.outputs, measured.outputs, seed)
    return {}


def sufficiency_table(
    before: Integers, asked: Integers, decided: Mapping[int, Integers], seed: int = 0
) -> dict[str, Measure]:
    """Share of images whose decision becomes the asked one when only the top k components are set, for every k.

    `decided` holds the decisions [N] by k; images of which no change is asked are left out.
    """
    return {
        f"sufficiency_at_{count}": mean_measure(flip_success(before, asked, labels), seed)
        for count, labels in sorted(decided.items())
    }


def flip_rate(before: Integers, after: Integers, seed: int = 0) -> Measure:
    """Share of images whose decision is no longer the source's, whatever it became: two [N]."""
    return mean_measure((before != after).astype(np.float64), seed)
