"""What an evaluation does on drawn faces: a probe reads their true factors off the edited pictures."""

from dataclasses import dataclass

from featgan.blackbox.loading import BlackBox
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import EXPRESSION_FACTORS, NUISANCE_FACTORS
from featgan.errors import UserError
from featgan.evaluation.edit_metrics import Family, FeatureSubject
from featgan.evaluation.sweeps import SWEEP, Sweeps, outputs_of
from featgan.metrics.bootstrap import Floats, as_floats
from featgan.metrics.factors import FactorNames, factor_response, factor_table


@dataclass(frozen=True)
class Columns:
    """The factors that shards and probe share, and where each stands in both; expression factors first."""

    names: FactorNames
    held: list[int]
    read: list[int]


def find_columns(shards: ShardSet, probe: BlackBox) -> Columns:
    """UserError when the probe reads none of the shards' factors, of one group or the other."""
    held, read = list(shards.factor_names), list(probe.class_names)
    expression = [name for name in EXPRESSION_FACTORS if name in held and name in read]
    nuisance = [name for name in NUISANCE_FACTORS if name in held and name in read]
    if not expression or not nuisance:
        raise UserError(
            f"{probe.spec}: reads none of the factors that {shards.path} holds; "
            "make a probe on shards of drawn faces with `featgan blackbox fit --target factors`"
        )
    names = FactorNames(expression, nuisance)
    return Columns(names, [held.index(name) for name in names.all], [read.index(name) for name in names.all])


def measure_factors(subject: FeatureSubject, probe: BlackBox, sweeps: Sweeps) -> tuple[Family, Floats]:
    """How much each component moves the true factors.

    Returns the family and the change of each factor per unit of each component [K, F]. The control `nearest_real` has
    the true factors of the training images nearest to each request.
    """
    assert sweeps.factors is not None
    columns = find_columns(subject.shards, probe)
    training = as_floats(subject.shards.split("train").factors[:, columns.held])
    true = as_floats(subject.split.factors[sweeps.rows][:, columns.held])
    deviations = training.std(0)
    features = subject.cache.features("validation", sweeps.rows)
    with subject.editor.showing("reconstructing", len(sweeps.rows)):
        reconstructed = subject.edit(sweeps.images, features, features)
    probed, kept = (outputs_of(probe, images)[:, columns.read] for images in (sweeps.images, reconstructed))
    swept = sweeps.factors[..., columns.read]
    known = training[subject.known_rows]
    found = {
        "generator": factor_table(columns.names, true, probed, kept, SWEEP_VALUES, swept, deviations),
        "nearest_real": factor_table(
            columns.names, true, true, known[subject.nearest(as_floats(features))], SWEEP_VALUES,
            known[sweeps.nearest], deviations,
        ),
    }  # fmt: skip
    return found, factor_response(SWEEP_VALUES, swept, deviations)


SWEEP_VALUES = as_floats(SWEEP)
