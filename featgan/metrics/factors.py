"""Metrics on synthetic faces with known factors: edits should change the expression, not nuisance factors.

A factor probe, a separate classifier, predicts the factors of an image. Factors are in standard deviations (SD) of the
training set and components in whitened units, so a slope is in factor SD per component SD.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featgan.metrics.bootstrap import Estimate, Floats, Integers, bootstrap_mean, bootstrap_ratio, bootstrap_statistic
from featgan.metrics.faithfulness import weighted_r2
from featgan.metrics.traversal import broadcast_requested, sweep_slopes

MIN_PROBE_R2 = 0.5
"""Minimum R2 of the factor probe for a factor. A constant prediction would make the generator look too good."""


@dataclass(frozen=True)
class FactorNames:
    """Names of the factors, in column order: those that define the expression, and the nuisance factors."""

    expression: Sequence[str]
    nuisance: Sequence[str]

    @property
    def all_names(self) -> tuple[str, ...]:
        """All names, in column order."""
        return (*self.expression, *self.nuisance)

    def group_columns(self, group: str) -> Integers:
        """Return the columns of the group `expression` or `nuisance` in arrays [..., len(all_names)]."""
        group_names = getattr(self, group)
        return np.array([self.all_names.index(name) for name in group_names], dtype=np.int64)


def factor_r2(true: Floats, estimated: Floats) -> Floats:
    """Compute R2 of the factor probe for each factor on real images: two [N, F] => [F], at most 1."""
    weights = np.full((1, len(true)), 1 / len(true))
    columns = range(true.shape[1])
    return np.array([weighted_r2(weights, true[:, [index]], estimated[:, [index]])[0] for index in columns])


def factor_slopes(requested: Floats, estimated: Floats, stds: Floats) -> Floats:
    """Compute the change of each factor per unit of each component, in SD, for each image => [N, K, F].

    `requested` whitened values [S], [K, S] or [N, K, S]; `estimated` factors [N, K, S, F]; `stds` [F].
    """
    return sweep_slopes(broadcast_requested(requested, estimated), estimated / stds)


def mean_factor_slopes(requested: Floats, estimated: Floats, stds: Floats) -> Floats:
    """Compute the mean of `factor_slopes` over images, signed => [K, F]: the effect of each component."""
    return np.mean(factor_slopes(requested, estimated, stds), axis=0)


def readable_columns(names: FactorNames, r2: Floats, group: str) -> Integers:
    """Return the columns of a group that the factor probe predicts with an R2 of at least MIN_PROBE_R2."""
    columns = names.group_columns(group)
    return np.extract(r2[columns] >= MIN_PROBE_R2, columns)


def factor_change_metrics(slopes: Floats, groups: Mapping[str, Integers], seed: int = 0) -> dict[str, Estimate]:
    """Compute the mean absolute slope of each group of factors, and the ratio nuisance / expression; slopes [N, K, F].

    Absolute values, because a component that brightens one face and darkens another does change the lighting.
    """
    magnitudes = {name: mean_magnitude(slopes[..., columns]) for name, columns in groups.items()}
    table = {f"factor_change_{name}": bootstrap_mean(magnitude.mean(1), seed) for name, magnitude in magnitudes.items()}
    table["factor_nuisance_ratio"] = bootstrap_ratio(
        magnitudes["nuisance"].mean(1), magnitudes["expression"].mean(1), seed
    )
    for index in range(slopes.shape[1]):
        pair = magnitudes["nuisance"][:, index], magnitudes["expression"][:, index]
        table[f"component_{index + 1:02d}_nuisance_ratio"] = bootstrap_ratio(*pair, seed)
    return table


def mean_magnitude(values: Floats) -> Floats:
    """Compute the mean absolute value over the last axis; 0 if it is empty: [..., F] => [...]."""
    return np.sum(np.abs(values), axis=-1) / max(values.shape[-1], 1)


def factor_error_metrics(
    true: Floats, estimated: Floats, stds: Floats, groups: Mapping[str, Integers], prefix: str, seed: int = 0
) -> dict[str, Estimate]:
    """Compute the mean |estimated - true| of each group in SD: two [N, F]; names start with `prefix`."""
    errors = (estimated - true) / stds
    return {
        f"{prefix}_{name}_error": bootstrap_mean(mean_magnitude(errors[:, columns]), seed)
        for name, columns in groups.items()
    }


def factor_metrics(
    names: FactorNames,
    true: Floats,
    probed: Floats,
    reconstructed: Floats,
    requested: Floats,
    swept: Floats,
    stds: Floats,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Compute all metrics on true factors; columns as in `names.all_names`.

    `true`: factors of N source images [N, F]. `probed` and `reconstructed`: predictions of the factor probe for the
    sources and for their reconstructions G(x, c0), both [N, F]. `swept` [N, K, S, F]: its predictions along the sweeps,
    for `requested` [S], [K, S] or [N, K, S]. `stds` [F]: SD of the factors on the training set, above 0.

    Factors that the probe cannot predict are excluded, except from `factor_probe_r2`. `factor_probe_readable` is the
    share of factors that it can predict.
    """
    r2 = factor_r2(true, probed)
    groups = {group: readable_columns(names, r2, group) for group in ("expression", "nuisance")}
    scaled_true, scaled_probed = true / stds, probed / stds
    readable_share = float((r2 >= MIN_PROBE_R2).mean())
    return {
        **factor_change_metrics(factor_slopes(requested, swept, stds), groups, seed),
        **factor_error_metrics(true, reconstructed, stds, groups, "factor_reconstruction", seed),
        **factor_error_metrics(true, probed, stds, groups, "factor_probe", seed),
        "factor_probe_r2": bootstrap_statistic(lambda w: weighted_r2(w, scaled_true, scaled_probed), len(true), seed),
        "factor_probe_readable": Estimate(readable_share, readable_share, readable_share, len(true)),
    }
