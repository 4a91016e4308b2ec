"""On drawn faces the true factors are known: does a component move the expression, and do nuisance factors stay put?

A probe reads factors off images; it is no part of the black box. Factors are compared in deviations of the training
set, components in whitened units, so a change is "deviations of the factor per deviation of the component".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featgan.metrics.bootstrap import Floats, Integers, Measure, mean_measure, measure, ratio_measure
from featgan.metrics.faithfulness import weighted_r2
from featgan.metrics.traversal import broadcast_request, sweep_slopes

READABLE = 0.5
"""R2 from which the probe is trusted with a factor: an estimate that never moves would flatter the generator."""


@dataclass(frozen=True)
class FactorNames:
    """The columns' names, in order; those that drive the expression and those that do not."""

    expression: Sequence[str]
    nuisance: Sequence[str]

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.expression, *self.nuisance)

    def columns(self, group: str) -> Integers:
        """Columns of the group `expression` or `nuisance` in arrays [..., len(all)]."""
        wanted = getattr(self, group)
        return np.array([self.all.index(name) for name in wanted], dtype=np.int64)


def factor_r2(true: Floats, estimated: Floats) -> Floats:
    """How well the probe reads each factor on real images: two [N, F] => R2 [F], at most 1."""
    weights = np.full((1, len(true)), 1 / len(true))
    columns = range(true.shape[1])
    return np.array([weighted_r2(weights, true[:, [index]], estimated[:, [index]])[0] for index in columns])


def factor_slopes(requested: Floats, estimated: Floats, deviations: Floats) -> Floats:
    """Change of each factor per unit of each component, in deviations, per image => [N, K, F].

    `requested` whitened values [S], [K, S] or [N, K, S]; `estimated` factors [N, K, S, F]; `deviations` [F].
    """
    return sweep_slopes(broadcast_request(requested, estimated), estimated / deviations)


def factor_response(requested: Floats, estimated: Floats, deviations: Floats) -> Floats:
    """Mean over images of `factor_slopes`, signed => [K, F]: what each component does, for the report."""
    return np.mean(factor_slopes(requested, estimated, deviations), axis=0)


def readable(names: FactorNames, r2: Floats, group: str) -> Integers:
    """Columns of a group that the probe reads well enough."""
    columns = names.columns(group)
    return np.extract(r2[columns] >= READABLE, columns)


def movement_table(slopes: Floats, groups: Mapping[str, Integers], seed: int = 0) -> dict[str, Measure]:
    """Mean size of the change of each group of factors, and the ratio nuisance / expression; slopes [N, K, F].

    Sizes, not signed means: a component that brightens one face and darkens another does not leave lighting alone.
    """
    sizes = {name: mean_size(slopes[..., columns]) for name, columns in groups.items()}
    table = {f"factor_change_{name}": mean_measure(size.mean(1), seed) for name, size in sizes.items()}
    table["factor_nuisance_ratio"] = ratio_measure(sizes["nuisance"].mean(1), sizes["expression"].mean(1), seed)
    for index in range(slopes.shape[1]):
        pair = sizes["nuisance"][:, index], sizes["expression"][:, index]
        table[f"component_{index + 1:02d}_nuisance_ratio"] = ratio_measure(*pair, seed)
    return table


def mean_size(values: Floats) -> Floats:
    """Mean absolute value over the last axis; 0 when it is empty: [..., F] => [...]."""
    return np.sum(np.abs(values), axis=-1) / max(values.shape[-1], 1)


def drift_table(
    true: Floats, estimated: Floats, deviations: Floats, groups: Mapping[str, Integers], prefix: str, seed: int = 0
) -> dict[str, Measure]:
    """Mean |estimated - true| of each group in deviations: two [N, F]; the names start with `prefix`."""
    errors = (estimated - true) / deviations
    return {
        f"{prefix}_{name}_error": mean_measure(mean_size(errors[:, columns]), seed) for name, columns in groups.items()
    }


def factor_table(
    names: FactorNames,
    true: Floats,
    probed: Floats,
    reconstructed: Floats,
    requested: Floats,
    swept: Floats,
    deviations: Floats,
    seed: int = 0,
) -> dict[str, Measure]:
    """Every measure on true factors, columns as in `names.all`.

    `true` factors of N source images [N, F]; the probe's estimates on the sources (`probed`), on their
    reconstructions G(x, c0) (`reconstructed`), both [N, F], and along the sweeps (`swept` [N, K, S, F], for
    `requested` [S], [K, S] or [N, K, S]); `deviations` [F] of the factors on the training set, above 0. Factors the
    probe cannot read are left out of every line but its own, `factor_probe_r2`; `factor_probe_readable` is their share.
    """
    r2 = factor_r2(true, probed)
    groups = {group: readable(names, r2, group) for group in ("expression", "nuisance")}
    scaled_true, scaled_probed = true / deviations, probed / deviations
    share = float((r2 >= READABLE).mean())
    return {
        **movement_table(factor_slopes(requested, swept, deviations), groups, seed),
        **drift_table(true, reconstructed, deviations, groups, "factor_reconstruction", seed),
        **drift_table(true, probed, deviations, groups, "factor_probe", seed),
        "factor_probe_r2": measure(lambda w: weighted_r2(w, scaled_true, scaled_probed), len(true), seed),
        "factor_probe_readable": Measure(share, share, share, len(true)),
    }
