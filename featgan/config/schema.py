"""Every configuration model on one page; `featgan.config.loading` reads them from YAML and the command line.

Frozen and strict: an unknown key, a wrong type or two fields that contradict each other is refused.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from featgan.config.base import Positive, Section
from featgan.errors import UserError

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


Suite = Literal["quick", "standard", "full"]

RANKING = (
    "shift", "shift_median", "shift_aggregate", "ccc", "r2", "centred_cosine", "components_ccc", "retrieval_top1",
    "retrieval_top5", "retrieval_mrr", "label_agreement", "label_macro_f1", "flip_success", "valence_ccc",
    "arousal_ccc", "valence_pearson", "arousal_pearson", "valence_rmse", "arousal_rmse", "attribute_agreement",
    "attributes_kept", "monotonicity", "monotone_share", "linearity", "diagonal_dominance", "self_l1", "self_psnr",
    "self_ssim", "cycle_l1", "cycle_psnr", "cycle_ssim", "frechet_edited", "kid_edited", "diversity", "diversity_ratio",
    "factor_nuisance_ratio",
)  # fmt: skip
"""Measures that tell the better of two checkpoints (docs/metrics.md); after `second_`, of the second data set."""


BEST = {
    "features": "ccc", "expression": "label_agreement", "valence_arousal": "valence_ccc",
    "attributes": "attribute_agreement",
}  # fmt: skip
"""What tells the better checkpoint, by the kind of condition, where nothing is said."""


class ConditionConfig(Section):
    """What is asked of an image, and how the discriminator's estimate of it is scored."""

    kind: Literal["features", "expression", "valence_arousal", "attributes"] = "features"
    """`features` of a black box (cached by `featgan extract`), or labels of the shards."""
    encoding: Literal["raw", "standardized", "components"] = "raw"
    """Features as they are, standardised over the live ones, or the whitened components of `extract --components`."""
    objective: Literal["actv", "pred", "both"] = "actv"
    """Features only: score the activations, the box's outputs read off them by a linear layer, or both."""
    regression: Literal["ccc", "mse"] = "ccc"
    """How real-valued conditions are scored: 1 - concordance, or mean squared error."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the condition's dimensions, for `ccc`: the ancestor sums; a mean does not grow with the width."""
    attributes: tuple[str, ...] = ()
    """Attribute names for `kind: attributes`, in the condition's order."""

    @model_validator(mode="after")
    def check_attributes(self) -> Self:
        if (self.kind == "attributes") != bool(self.attributes):
            raise ValueError("attributes: name them exactly when kind is 'attributes'")
        return self


class DatasetConfig(Section):
    """Packed shards, the feature cache beside them, and the condition taken from them."""

    shards: Path = Path("shards")
    """Folder written by `featgan pack`."""
    features: str = "blackbox"
    """Name of the feature cache (`featgan extract --name`), for `condition.kind: features`."""
    mirror: bool = True
    """Mirror half of the images at random; a mirrored image gets the mirrored image's features."""
    condition: ConditionConfig = ConditionConfig()
    """What is asked of the images of this data set."""


class GeneratorConfig(Section):
    """G(x, c): the image editor."""

    dim: Positive = 64
    """Channels of the first convolution; doubled twice on the way down."""
    num_blocks: Positive = 6
    """Residual blocks at a quarter of the resolution."""
    request: Literal["target", "change"] = "target"
    """G is told the wanted condition; under `change` also how it differs from the image's own, which a box tells."""
    conditioning: Literal["concat", "tile", "modulation"] = "concat"
    """Condition as C constant planes, as one tiled plane, or as scale and shift of the normalised activations."""
    output: Literal["image", "blend"] = "image"
    """A new image, or new pixels blended with the source through a mask."""
    upsampling: Literal["transposed", "nearest"] = "transposed"
    """Transposed convolutions, or repeated pixels and a convolution, which leaves no checkerboard."""

    @property
    def architecture(self) -> dict[str, Any]:
        """What the network is built from: all but what it is told."""
        return self.model_dump(exclude={"request"})


class DiscriminatorConfig(Section):
    """D(x): realness of patches and an estimate of the condition."""

    dim: Positive = 64
    """Channels of the first convolution, doubled at every layer."""
    max_dim: Positive = 8192
    """Channels are doubled up to this many."""
    num_layers: Positive = 6
    """Stride-2 convolutions; the image must be at least 2 ** num_layers pixels wide."""
    projection: bool = False
    """Add the pooled activations' inner product with the embedded condition to the patch map (Miyato & Koyama)."""


class LossConfig(Section):
    """The objective's terms and their weights."""

    adversarial: Literal["wgan_gp", "logistic"] = "wgan_gp"
    """Wasserstein with gradient penalty, or non-saturating logistic with lazy R1."""
    penalty_weight: Weight = 10.0
    """w_gp of WGAN-GP, or gamma / 2 of R1."""
    r1_every: Positive = 16
    """R1 is taken every so many discriminator steps and weighted up by as much."""
    cycle_weight: Weight = 10.0
    """w_rec: L1 between the source and G(G(x, c_target), c_source)."""
    identity_weight: Weight = 0.0
    """L1 between the source and G(x, c_source)."""
    identity_margin: Weight = 0.0
    """An image's L1 up to which that term asks for nothing, so that small changes are not taken for none."""
    condition_weight: Weight = 1.0
    """w_cls: the discriminator's estimate against the condition."""
    prediction_weight: Weight = 1.0
    """w_cls2: the box's outputs read off that estimate, for `objective: pred` or `both`."""


class OptimizerConfig(Section):
    """Adam for both networks; the rate is constant, then falls linearly to zero over the last `decay_steps`."""

    generator_rate: Rate = 1e-4
    """Learning rate of G."""
    discriminator_rate: Rate = 1e-4
    """Learning rate of D."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Decay of Adam's first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of Adam's second moment."""
    decay_steps: Annotated[int, Field(ge=0)] = 0
    """Length of the linear fall to zero at the end."""
    clip_norm: Weight = 0.0
    """Largest gradient norm of a network; 0 leaves gradients alone."""


class TrainingConfig(Section):
    """The loop: how long, how often, how precisely."""

    steps: Positive = 200_000
    """Discriminator steps of the whole run."""
    batch_size: Positive = 16
    """Images of a step, over all processes together."""
    critic_steps: Positive = 5
    """n_critic: the generator is trained every so many discriminator steps."""
    head_start: Annotated[int, Field(ge=0)] = 0
    """Steps at the beginning in which D alone is trained, to read the condition off real images."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Fixes the initial weights, the data's order, the targets and the penalty's points."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """`bf16` runs the networks under autocast, losses and penalties in fp32; `auto` does so where it is fast."""
    ema_images: Annotated[int, Field(ge=0)] = 0
    """Half-life, in images, of the running average of G's weights that is evaluated and rendered; 0 turns it off."""
    num_workers: Annotated[int, Field(ge=0, le=64)] = 1
    """Processes that prepare batches."""
    report_every: Positive = 100
    """Steps between lines of metrics."""
    preview_every: Positive = 1000
    """Steps between grids of samples."""
    save_every: Positive = 1000
    """Steps between checkpoints."""
    keep_checkpoints: Positive = 3
    """Newest checkpoints kept."""

    @model_validator(mode="before")
    @classmethod
    def refuse(cls, values: Any) -> Any:
        """Say why, where a known wish cannot be granted."""
        if isinstance(values, dict) and values.get("precision") == "fp16":
            raise ValueError("precision: fp16 needs a loss scale through the penalty's second derivative; use bf16")
        return values


class DistributionConfig(Section):
    """How the processes of a run share its work; nothing here changes what is computed, but for rounding."""

    strategy: Literal["ddp", "deepspeed"] = "ddp"
    """Every process holds everything, or DeepSpeed shards the optimisers (needs `pip install 'featgan[deepspeed]'`)."""
    zero_stage: Literal[0, 1, 2] = 1
    """DeepSpeed: 0 shards nothing, 1 the optimisers' moments, 2 the gradients too."""
    accumulation: Positive = 1
    """A process takes its share of the batch in so many parts, for less memory; the step is that of the whole batch."""
    recompute: bool = False
    """The backward pass makes G's activations again in place of keeping them: less memory, some more time."""
    hang_timeout: Weight = 1800.0
    """Seconds without a finished step after which every process dumps its stacks and ends the run; 0: never."""

    @model_validator(mode="before")
    @classmethod
    def refuse(cls, values: Any) -> Any:
        """Say why, where a known wish cannot be granted."""
        wishes = values if isinstance(values, dict) else {}
        if wishes.get("strategy") in ("fsdp", "fsdp2"):
            raise ValueError("strategy: FSDP frees weights that the penalty's second derivative needs; use ddp")
        if wishes.get("zero_stage") == 3:
            raise ValueError("zero_stage: 3 frees weights that the penalty's second derivative needs; use 0 to 2")
        if "static_graph" in wishes:
            raise ValueError("static_graph: DDP then reduces the gradient penalty's gradients wrongly; leave it out")
        return values


class EvaluationConfig(Section):
    """Which checkpoints are evaluated by `python -m launch watch`, and which of them are kept for it."""

    every: Annotated[int, Field(ge=0)] = 0
    """At multiples of this step a checkpoint is saved and waits for its evaluation; 0: the newest only."""
    suite: Suite = "quick"
    """How thoroughly."""
    best: str = "ccc"
    """The measure whose largest value marks the best checkpoint, which is kept; `-frechet_edited`: the smallest.

    By default of runs on labels: `label_agreement`, `valence_ccc` or `attribute_agreement`.
    """
    best_suite: Suite | None = None
    """The best checkpoint so far is evaluated with this suite as well; by default with `suite` alone."""
    blackboxes: tuple[str, ...] = ()
    """SPEC of the box where it has moved; for a run on labels its judges, without which no agreement is measured."""
    probe: str | None = None
    """SPEC of a box fitted on the true factors of drawn faces."""
    witness: str | None = None
    """SPEC of a second box that took no part in training, for a run on features: does it see the change as well?"""
    most_waiting: Positive = 20
    """Newest checkpoints kept because they wait for their evaluation; an older one is given up, with a warning."""

    @model_validator(mode="after")
    def check_best(self) -> Self:
        name = self.best.removeprefix("-").removeprefix("second_")
        if name not in RANKING:
            near = get_close_matches(name, RANKING, 1) or ["ccc"]
            raise ValueError(f"best: {self.best!r} is no measure that ranks checkpoints; did you mean {near[0]!r}?")
        return self


class Config(Section):
    """One training run."""

    run: Path = Path("runs/default")
    """The run's folder; a run is its folder."""
    dataset: DatasetConfig = DatasetConfig()
    """The images and their condition."""
    second_dataset: DatasetConfig | None = None
    """A second data set trained together with the first (StarGAN's mask vector); labels only."""
    generator: GeneratorConfig = GeneratorConfig()
    """The generator."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """The discriminator."""
    losses: LossConfig = LossConfig()
    """The objective."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimisers."""
    training: TrainingConfig = TrainingConfig()
    """The loop."""
    distribution: DistributionConfig = DistributionConfig()
    """Several processes."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation on a schedule."""

    @model_validator(mode="before")
    @classmethod
    def choose_best(cls, values: Any) -> Any:
        """What tells the better checkpoint of a run on labels, where nothing is said."""
        if not isinstance(values, dict):
            return values
        dataset, evaluation = values.get("dataset"), values.get("evaluation", {})
        condition = dataset.get("condition") if isinstance(dataset, dict) else None
        kind = condition.get("kind") if isinstance(condition, dict) else None
        if kind not in BEST or not isinstance(evaluation, dict):
            return values
        return values | {"evaluation": {"best": BEST[kind]} | evaluation}

    def check_processes(self, count: int) -> None:
        """UserError unless the batch can be shared evenly by so many processes, each of which takes it in parts."""
        batch_size, accumulation = self.training.batch_size, self.distribution.accumulation
        if batch_size % (count * accumulation):
            raise UserError(
                f"training.batch_size: {batch_size} cannot be shared by {count} processes"
                f" with distribution.accumulation {accumulation}"
            )

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.optimizer.decay_steps > self.training.steps:
            raise ValueError(
                f"optimizer.decay_steps: {self.optimizer.decay_steps} is more than training.steps {self.training.steps}"
            )
        training = self.training
        generator_steps = [steps // training.critic_steps for steps in (training.head_start, training.steps)]
        if training.head_start and generator_steps[0] >= generator_steps[1]:
            raise ValueError(
                f"training.steps: {training.steps} leave no step to the generator; raise them above "
                f"training.head_start {training.head_start} + training.critic_steps {training.critic_steps}, "
                "or lower those"
            )
        if self.training.batch_size % self.distribution.accumulation:
            raise ValueError(
                f"distribution.accumulation: {self.distribution.accumulation} parts cannot share "
                f"training.batch_size {self.training.batch_size}"
            )
        kinds = {data.condition.kind for data in (self.dataset, self.second_dataset) if data}
        if self.generator.request == "change" and kinds != {"features"}:
            raise ValueError(
                "generator.request: a change needs the condition of every image that is edited, and only a box can "
                "tell it (condition.kind features); use target"
            )
        if self.second_dataset and "features" in kinds:
            raise ValueError("second_dataset: two data sets are trained on labels only, not on features")
        return self
