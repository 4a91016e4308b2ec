"""Configuration schema: every section of a run; `featgan.config.loading` reads it from YAML and the command line.

The models are frozen and strict: unknown keys and wrong types are errors, and some contradictions between fields are
errors.
Each field declares whether it may change when a run resumes: `fixed`, `resumable` or `resumable_without_lr_decay`.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, field_validator, model_validator

from featgan.config.base import ConfigModel, PositiveInt, fixed, resumable, resumable_without_lr_decay
from featgan.config.choices import Suite
from featgan.config.metric_specs import DEFAULT_SELECTION_METRICS, SECOND_DATASET_PREFIX, SELECTION_METRICS
from featgan.errors import UserError
from featgan.system.limits import MAX_COUNT
from featgan.system.locations import Location
from featgan.system.user_paths import expand_path

NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_COUNT)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UserPath = Annotated[Path, AfterValidator(expand_path)]


def parse_shards_location(value: object) -> Location:
    """Return the folder that a path or URL names; a URL may also be that of the manifest.json in the folder."""
    if isinstance(value, Location):
        return value
    if isinstance(value, Path):
        return Location.from_path(expand_path(value))
    if not isinstance(value, str):
        raise ValueError("not a path or URL")
    location = Location.parse(value)
    if location.has_secret:
        raise ValueError(
            f"{location}: contains a password or a query, which would be stored with the run; use ~/.netrc or the "
            "variables of the environment instead"
        )
    if not location.is_remote:
        return Location.from_path(expand_path(value if location.scheme == "path" else location.path))
    folder = location.parent if location.name == "manifest.json" else location
    return Location(folder.scheme, folder.raw.rstrip("/"))


ShardsLocation = Annotated[
    Location, PlainValidator(parse_shards_location), PlainSerializer(lambda location: location.raw, return_type=str)
]


def parse_feature_cache(value: str) -> str:
    """Return the name of a feature cache, or the absolute path or URL of its folder, which contains a slash."""
    if "/" not in value:
        return value
    location = parse_shards_location(value)
    return location.raw if location.is_remote else str(location.path.absolute())


FeatureCacheReference = Annotated[str, AfterValidator(parse_feature_cache)]

MAX_STEPS = 99_999_999
"""The names of checkpoints have eight digits."""

LearningRate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


NetworkWidth = Annotated[int, Field(ge=1, le=1024)]
"""Channels of the first convolution; eight times the largest preset."""


class ConditionConfig(ConfigModel):
    """The condition of the GAN, and the loss between it and the discriminator's estimate."""

    kind: Literal["features", "expression", "valence_arousal", "attributes"] = fixed("features")
    """`features` of a classifier (cached by `featgan extract`), or labels that are stored in the shards. `expression`:
    the class label (any classes; the name is historical)."""
    encoding: Literal["raw", "standardized", "components"] = fixed("raw")
    """Features only: raw features, features standardized over the non-constant ones, or whitened principal components
    (`featgan extract --num-components`)."""
    loss_on: Literal["features", "outputs", "both"] = fixed("features")
    """What is compared: the estimated features, the classifier outputs that a linear layer computes from this estimate,
    or both. Features only."""
    regression_loss: Literal["ccc", "mse"] = fixed("ccc")
    """Loss of real-valued conditions: 1 - CCC (concordance correlation coefficient), or mean squared error."""
    ccc_reduction: Literal["sum", "mean"] = fixed("sum")
    """Reduction of the CCC loss over the condition's dimensions. The sum follows the original implementation; the mean
    does not grow with the number of dimensions."""
    attributes: tuple[str, ...] = fixed(())
    """Attribute names in the order of the condition, for `kind: attributes`."""

    @model_validator(mode="after")
    def check_attributes(self) -> Self:
        if (self.kind == "attributes") != bool(self.attributes):
            raise ValueError("attributes: list the attribute names if kind is 'attributes', and only then")
        return self


class DatasetConfig(ConfigModel):
    """Packed shards, the cached features of their images, and the condition."""

    shards: ShardsLocation = resumable(Location("path", "shards"))
    """Folder written by `featgan pack` or `featgan index`: a path, or the URL of the folder or of its manifest.json
    (`https://`, `s3://`, `gs://`, `hf://datasets/...`). A run resumes only with the same images, but they may be in
    another place."""
    feature_cache: FeatureCacheReference = resumable("blackbox")
    """Feature cache, for `condition.kind: features`: its name in the shards (`featgan extract --cache-name`), or its
    folder (`featgan extract --out`), a path or URL with at least one `/`. A run resumes only with features of the same
    layer and classifier, but they may be in another place."""
    horizontal_flip: bool = fixed(True)
    """Flip each image horizontally with probability 0.5. A flipped image is paired with the features of the flipped
    image."""
    shuffle_window: NonNegativeInt = fixed(0)
    """Number of shards whose images are mixed at a time. 0: all images of an epoch are mixed. Otherwise the shards are
    permuted in each epoch, each `shuffle_window` consecutive shards form a window, and the images are permuted inside
    each window. So an epoch reads the shards one window after the other, for data that are larger than the memory or
    the local disk."""
    cache_dir: UserPath | None = resumable(None)
    """Folder on the local disk of each node for shards that are downloaded or staged. Jobs of one user may share it.
    The default is a folder in `$SLURM_TMPDIR`, `$TMPDIR` or `/tmp`."""
    cache_gb: Annotated[float, Field(gt=0, le=MAX_COUNT)] | None = resumable(None)
    """Maximum size of this folder in gigabytes (1e9 bytes). The default is 80 % of the free space."""
    stage: bool = resumable(False)
    """Also copy the shards of a shared file system to `cache_dir` before they are read."""
    retry_seconds: Annotated[float, Field(ge=0, le=MAX_COUNT)] = resumable(900.0)
    """Seconds to wait for a server that cannot be reached, before the run ends with an error."""
    condition: ConditionConfig = ConditionConfig()
    """The condition of this data set."""


class GeneratorConfig(ConfigModel):
    """The generator G(x, c), which edits image x toward condition c."""

    dim: NetworkWidth = fixed(64)
    """Number of channels of the first convolution; each of the two downsampling layers doubles it."""
    num_blocks: Annotated[int, Field(ge=1, le=64)] = fixed(6)
    """Number of residual blocks, which run at a quarter of the image resolution."""
    condition_input: Literal["target", "target_and_difference"] = fixed("target")
    """Condition given to G: the target, or the target and its difference from the source condition (features only,
    since the source condition must be known)."""
    conditioning: Literal["concat", "tile", "adain"] = fixed("concat")
    """How the condition enters G: one constant plane per dimension (`concat`), one plane filled with the repeated
    vector (`tile`), or scale and shift of the normalized activations (`adain`)."""
    output: Literal["image", "masked_blend"] = fixed("image")
    """Output of G: a new image, or new pixels that a predicted mask blends with the source image."""
    upsampling: Literal["transposed", "nearest"] = fixed("transposed")
    """Transposed convolutions, or nearest-neighbor upsampling followed by a convolution, which avoids checkerboard
    artifacts."""

    @property
    def architecture(self) -> dict[str, Any]:
        """Constructor arguments of the network: every field except `condition_input`."""
        return self.model_dump(exclude={"condition_input"})


class DiscriminatorConfig(ConfigModel):
    """The discriminator D(x), which rates the realism of patches and estimates the condition."""

    dim: NetworkWidth = fixed(64)
    """Number of channels of the first convolution; each layer doubles it."""
    max_dim: Annotated[int, Field(ge=1, le=16_384)] = fixed(8192)
    """Maximum number of channels."""
    num_layers: Annotated[int, Field(ge=1, le=10)] = fixed(6)
    """Number of stride-2 convolutions; the image must be at least 2 ** num_layers pixels wide."""
    projection: bool = fixed(False)
    """Add the inner product of the pooled activations and the embedded condition to the patch logits (projection
    discriminator, Miyato & Koyama 2018)."""


class LossConfig(ConfigModel):
    """The loss terms and their weights."""

    adversarial: Literal["wgan_gp", "non_saturating"] = fixed("wgan_gp")
    """Wasserstein loss with gradient penalty, or non-saturating logistic loss with lazy R1 regularization."""
    gp_weight: NonNegativeFloat = fixed(10.0)
    """Weight of the gradient penalty, for `adversarial: wgan_gp`."""
    r1_gamma: NonNegativeFloat = fixed(20.0)
    """R1 regularization weight gamma, for `adversarial: non_saturating`; the penalty is multiplied by gamma / 2."""
    r1_interval: PositiveInt = fixed(16)
    """R1 is computed every N discriminator steps and multiplied by N (lazy regularization)."""
    cycle_weight: NonNegativeFloat = fixed(10.0)
    """Weight of the cycle loss: L1 between the source image and G(G(x, c_target), c_source)."""
    identity_weight: NonNegativeFloat = fixed(0.0)
    """Weight of the identity loss: L1 between the source image and G(x, c_source)."""
    identity_margin: NonNegativeFloat = fixed(0.0)
    """Margin: the identity loss is zero while an image's L1 error is below this value, so that small edits are not
    penalized."""
    condition_weight: NonNegativeFloat = fixed(1.0)
    """Weight of the condition loss: the error of the discriminator's estimate of the condition."""
    output_weight: NonNegativeFloat = fixed(1.0)
    """Weight of the loss on the classifier outputs that are computed from that estimate, for `condition.loss_on:
    outputs` or `both`."""


class OptimizerConfig(ConfigModel):
    """Adam, for both networks. The learning rate is constant, then decays linearly to zero over `lr_decay_steps`."""

    generator_lr: LearningRate = fixed(1e-4)
    """Learning rate of G."""
    discriminator_lr: LearningRate = fixed(1e-4)
    """Learning rate of D."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = fixed(0.5)
    """Decay rate of Adam's average of the gradient."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = fixed(0.999)
    """Decay rate of Adam's average of the squared gradient."""
    lr_decay_steps: NonNegativeInt = fixed(0)
    """Number of steps at the end of the run in which the learning rate decays to zero; 0 disables the decay."""
    max_grad_norm: NonNegativeFloat = fixed(0.0)
    """Maximum gradient norm of each network (gradient clipping); 0 disables clipping."""


class TrainingConfig(ConfigModel):
    """The training loop: number of steps, batch size, precision and logging intervals."""

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = resumable_without_lr_decay(200_000)
    """Number of discriminator steps of the run."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = fixed(16)
    """Number of images per step, summed over all processes."""
    n_critic: PositiveInt = fixed(5)
    """The generator is updated once every n_critic discriminator steps."""
    discriminator_warmup_steps: NonNegativeInt = fixed(0)
    """Number of steps at the start that train only D, with the condition loss on real images."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = fixed(0)
    """Random seed for the initial weights, the data order, the targets and the gradient penalty."""
    precision: Literal["fp32", "bf16", "auto"] = fixed("auto")
    """`bf16` runs the networks under autocast and computes losses and penalties in fp32; `auto` uses bf16 if the
    device computes it fast, and fp32 otherwise."""
    ema_half_life_images: NonNegativeInt = fixed(0)
    """Half-life, in images, of the exponential moving average (EMA) of G's weights, which is used for evaluation and
    rendering; 0 disables the EMA."""
    num_workers: Annotated[int, Field(ge=0, le=64)] = resumable(1)
    """Number of data loading processes per training process."""
    log_every: PositiveInt = resumable(100)
    """Number of steps between two entries in metrics.jsonl and TensorBoard."""
    sample_every: PositiveInt = resumable(1000)
    """Number of steps between two grids of sample edits."""
    checkpoint_every: PositiveInt = resumable(1000)
    """Number of steps between two checkpoints."""
    max_checkpoints: PositiveInt = resumable(3)
    """Number of newest checkpoints to keep."""

    @model_validator(mode="before")
    @classmethod
    def reject_unsupported(cls, values: Any) -> Any:
        """Reject unsupported settings with an explanation."""
        if isinstance(values, dict) and values.get("precision") == "fp16":
            raise ValueError("precision: fp16 needs a loss scale, for the gradient penalty too; use bf16")
        return values


class DistributedConfig(ConfigModel):
    """How processes share the work of a step. These settings change the results by rounding only."""

    strategy: Literal["ddp", "deepspeed"] = resumable("ddp")
    """`ddp` keeps a full copy of the networks and optimizer states in every process; `deepspeed` shards the optimizer
    states (requires `pip install 'featgan[deepspeed]'`)."""
    zero_stage: Literal[0, 1, 2] = resumable(1)
    """DeepSpeed ZeRO stage: 0 shards nothing, 1 shards the optimizer states, 2 also shards the gradients."""
    gradient_accumulation_steps: PositiveInt = resumable(1)
    """Number of microbatches into which each process splits its share of the batch, to save memory. The result of a
    step is the same as without accumulation, also for the CCC loss."""
    activation_checkpointing: bool = resumable(False)
    """Recompute G's activations in the backward pass instead of storing them: less memory, more time."""
    hang_timeout: Annotated[float, Field(ge=0, le=MAX_COUNT)] = resumable(1800.0)
    """Seconds without a completed step after which every process prints its stack traces and exits; 0 disables the
    timeout. The time before the first step counts too: loading, hashing the shards and preparing the networks."""

    @model_validator(mode="before")
    @classmethod
    def reject_unsupported(cls, values: Any) -> Any:
        """Reject unsupported settings with an explanation."""
        raw_values = values if isinstance(values, dict) else {}
        if raw_values.get("strategy") in ("fsdp", "fsdp2"):
            raise ValueError(
                "strategy: FSDP frees weights that the gradient penalty reads outside of `forward`; use ddp"
            )
        if raw_values.get("zero_stage") == 3:
            raise ValueError(
                "zero_stage: 3 frees weights that the gradient penalty reads outside of `forward`; use 0, 1 or 2"
            )
        if "static_graph" in raw_values:
            raise ValueError("static_graph: DDP would then reduce the penalty's gradients incorrectly; remove this key")
        return values


class EvaluationConfig(ConfigModel):
    """Checkpoints that `python -m launch watch` evaluates, and which checkpoints are kept until they are evaluated."""

    every: NonNegativeInt = resumable(0)
    """Training saves a checkpoint at the multiples of this step, and keeps it until it is evaluated. The watch
    evaluates these checkpoints and the newest one; with 0, the newest one only."""
    suite: Suite = resumable("quick")
    """Suite of the watch. Number of images to evaluate: quick 2,000 pairs, standard 10,000 pairs, full all validation
    images."""
    selection_metric: str = resumable("ccc")
    """Metric that selects the best checkpoint (see docs/metrics.md). Training keeps this checkpoint, and the watch and
    the leaderboard use it. The default for labels is `label_agreement`, `valence_ccc` or `attribute_agreement`."""
    best_suite: Suite | None = resumable(None)
    """Suite with which the watch also evaluates the best checkpoint so far."""
    classifiers: tuple[str, ...] = resumable(())
    """New SPEC of the classifier, if its file has moved. For a label-conditioned run: SPECs of the evaluation
    classifiers, one per data set; without them, no agreement is measured. The watch uses this field, and `evaluate`
    uses it if `--classifier` is not given."""
    factor_probe: str | None = resumable(None)
    """SPEC of a classifier trained to predict the true factors of synthetic faces. The watch uses this field, and
    `evaluate` uses it if `--factor-probe` is not given."""
    second_classifier: str | None = resumable(None)
    """SPEC of a second classifier that was not used in training, to check that it also responds to the edits. The watch
    uses this field, and `evaluate` uses it if `--second-classifier` is not given."""
    max_pending: PositiveInt = resumable(20)
    """Maximum number of checkpoints that training keeps for a pending evaluation. Older ones are removed with a
    warning."""

    @field_validator("selection_metric")
    @classmethod
    def check_selection_metric(cls, value: str) -> str:
        if value.startswith("-"):
            raise ValueError(f"{value!r}: remove the minus sign; the direction of each metric is known")
        name = value.removeprefix(SECOND_DATASET_PREFIX)
        if name not in SELECTION_METRICS:
            close_matches = get_close_matches(name, SELECTION_METRICS, 1) or ["ccc"]
            raise ValueError(f"{value!r} is not a metric that selects checkpoints; did you mean {close_matches[0]!r}?")
        return value


class Config(ConfigModel):
    """One training run."""

    run_dir: UserPath = resumable(Path("runs/default"))
    """Output folder of the run."""
    dataset: DatasetConfig = DatasetConfig()
    """The images and their condition."""
    second_dataset: DatasetConfig | None = fixed(None)
    """A second data set that is trained together with the first, with StarGAN's mask vector; labels only."""
    generator: GeneratorConfig = GeneratorConfig()
    """The generator."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """The discriminator."""
    losses: LossConfig = LossConfig()
    """The loss terms."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizers."""
    training: TrainingConfig = TrainingConfig()
    """The training loop."""
    distributed: DistributedConfig = DistributedConfig()
    """Training with several processes."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation by `python -m launch watch`."""

    @model_validator(mode="before")
    @classmethod
    def set_default_selection_metric(cls, values: Any) -> Any:
        """Set the default selection metric of a label-conditioned run."""
        if not isinstance(values, dict):
            return values
        dataset, evaluation = values.get("dataset"), values.get("evaluation", {})
        condition = dataset.get("condition") if isinstance(dataset, dict) else None
        condition_kind = condition.get("kind") if isinstance(condition, dict) else None
        if not isinstance(condition_kind, str) or not isinstance(evaluation, dict):
            return values
        if condition_kind not in DEFAULT_SELECTION_METRICS:
            return values
        default = {"selection_metric": DEFAULT_SELECTION_METRICS[condition_kind]}
        return values | {"evaluation": default | evaluation}

    def check_batch_split(self, num_processes: int) -> None:
        """Raise UserError unless the batch can be split evenly between the processes and their microbatches."""
        batch_size, accumulation_steps = self.training.batch_size, self.distributed.gradient_accumulation_steps
        if batch_size % (num_processes * accumulation_steps):
            raise UserError(
                f"training.batch_size: {batch_size} cannot be split between {num_processes} processes"
                f" with distributed.gradient_accumulation_steps {accumulation_steps}; choose a multiple of"
                f" {num_processes * accumulation_steps}"
            )

    @model_validator(mode="after")
    def check_consistency(self) -> Self:
        training, accumulation_steps = self.training, self.distributed.gradient_accumulation_steps
        if self.optimizer.lr_decay_steps > training.steps:
            raise ValueError(
                f"optimizer.lr_decay_steps: {self.optimizer.lr_decay_steps} is larger than training.steps"
                f" {training.steps}; lower it"
            )
        warmup_steps = training.discriminator_warmup_steps
        if warmup_steps and warmup_steps // training.n_critic >= training.steps // training.n_critic:
            min_steps = (warmup_steps // training.n_critic + 1) * training.n_critic
            raise ValueError(
                f"training.steps: {training.steps} leaves no step to train the generator after"
                f" training.discriminator_warmup_steps {warmup_steps}; set it to at least {min_steps}"
            )
        if training.batch_size % accumulation_steps:
            raise ValueError(
                f"distributed.gradient_accumulation_steps: training.batch_size {training.batch_size} is not divisible"
                f" by {accumulation_steps}; choose a divisor"
            )
        condition_kinds = {data.condition.kind for data in (self.dataset, self.second_dataset) if data}
        if self.generator.condition_input == "target_and_difference" and condition_kinds != {"features"}:
            raise ValueError(
                "generator.condition_input: target_and_difference needs the source condition, which is known for"
                " condition.kind 'features' only; use target"
            )
        if self.second_dataset and "features" in condition_kinds:
            raise ValueError(
                "second_dataset: two data sets can be trained on labels only; choose another kind than 'features'"
            )
        return self
