"""Every configuration model on one page: defaults < YAML < `section.key=value` on the command line.

Frozen and strict: an unknown key, a wrong type or two fields that contradict each other is refused in one line.
"""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from featgan.errors import UserError

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen group of fields that knows no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
    conditioning: Literal["concat", "tile", "modulation"] = "concat"
    """Condition as C constant planes, as one tiled plane, or as scale and shift of the normalised activations."""
    output: Literal["image", "residual", "blend"] = "image"
    """A new image; a change added to the source; or new pixels blended with the source through a mask."""
    upsampling: Literal["transposed", "nearest"] = "transposed"
    """Transposed convolutions, or repeated pixels and a convolution, which leaves no checkerboard."""


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
    condition_weight: Weight = 1.0
    """w_cls: the discriminator's estimate against the condition."""
    prediction_weight: Weight = 1.0
    """w_cls2: the box's outputs read off that estimate, for `objective: pred` or `both`."""


class TargetConfig(Section):
    """How target conditions are drawn; the shares are relative."""

    permutation: Weight = 1.0
    """The condition of another image of the batch."""
    interpolation: Weight = 0.0
    """A point on the line between the source's condition and another image's."""
    component: Weight = 0.0
    """The source's own condition with one principal component set to another image's: what a traversal asks for."""


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
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Fixes the initial weights, the data's order, the targets and the penalty's points."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
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
    suite: Literal["quick", "standard"] = "quick"
    """How thoroughly."""
    best: str = "ccc"
    """The measure whose largest value marks the best checkpoint, which is kept; `-frechet_edited`: the smallest."""


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
    targets: TargetConfig = TargetConfig()
    """The target conditions."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimisers."""
    training: TrainingConfig = TrainingConfig()
    """The loop."""
    distribution: DistributionConfig = DistributionConfig()
    """Several processes."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation on a schedule."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.optimizer.decay_steps > self.training.steps:
            raise ValueError(
                f"optimizer.decay_steps: {self.optimizer.decay_steps} is more than training.steps {self.training.steps}"
            )
        if self.training.batch_size % self.distribution.accumulation:
            raise ValueError(
                f"distribution.accumulation: {self.distribution.accumulation} parts cannot share "
                f"training.batch_size {self.training.batch_size}"
            )
        if self.targets.permutation + self.targets.interpolation + self.targets.component <= 0:
            raise ValueError("targets: at least one share must be above 0")
        kinds = {data.condition.kind for data in (self.dataset, self.second_dataset) if data}
        if self.targets.interpolation + self.targets.component > 0 and kinds != {"features"}:
            raise ValueError("targets: interpolation and component need condition.kind 'features'")
        if self.targets.interpolation + self.targets.component > 0 and self.dataset.condition.objective != "actv":
            raise ValueError("targets: interpolation and component need condition.objective 'actv' (outputs unknown)")
        if self.targets.component > 0 and self.dataset.condition.encoding != "components":
            raise ValueError("targets.component: needs dataset.condition.encoding 'components'")
        if self.second_dataset and "features" in kinds:
            raise ValueError("second_dataset: two data sets are trained on labels only, not on features")
        return self


OPERATIONAL = ("run", "training.num_workers", "training.report_every", "training.preview_every", "training.save_every",
               "training.keep_checkpoints", "distribution.strategy", "distribution.zero_stage",
               "distribution.accumulation", "distribution.hang_timeout", "evaluation.every", "evaluation.suite",
               "evaluation.best")  # fmt: skip
"""Fields that may differ when a run is resumed: they do not change what is computed, but for rounding."""


def presets() -> dict[str, Path]:
    """The presets by bare name: those of the package, and of a `configs` folder in a checkout."""
    folders = [Path(str(resources.files("featgan"))) / "configs", Path(__file__).parent.parent / "configs"]
    return {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.yaml"))}


def locate(name: str) -> Path:
    """A preset by bare name, or a file; UserError when it is neither."""
    path = Path(name)
    if path.is_file():
        return path
    known = presets()
    bare = path.stem if path.suffix in (".yaml", ".yml") and path.parent.name in ("configs", "") else name
    if bare in known:
        return known[bare]
    raise UserError(f"{name}: no such file, and no preset of that name; the presets are {', '.join(sorted(known))}")


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read a preset or file, apply `section.key=value` overrides, validate.

    Raises UserError in one line for a missing file, a YAML mistake, an unknown key or a value that is not allowed.
    """
    path = locate(name)
    return validate(merge(read_yaml(path), overrides), str(path))


def read_yaml(path: Path, most_bytes: int = 1 << 20) -> dict[str, Any]:
    """A YAML mapping of bounded size, without aliases (a few lines of them can expand to gigabytes)."""
    if path.stat().st_size > most_bytes:
        raise UserError(f"{path}: larger than {most_bytes} bytes; this is no configuration")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise UserError(f"{path}: YAML aliases (*name) are not allowed; write the values out")
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or 'cannot be read'}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: must be a mapping of sections")
    return loaded


def merge(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The tree with each `a.b=c` set; values are read as YAML."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r}: an override is written section.key=value")
        *parents, leaf = key.split(".")
        branch = tree
        for parent in parents:
            if not isinstance(branch.get(parent), dict):
                branch[parent] = {}
            branch = branch[parent]
        try:
            branch[leaf] = yaml.safe_load(text) if text else None
        except (yaml.YAMLError, ValueError):
            raise UserError(f"{override!r}: the value is not valid YAML; put a text in quotes") from None
    return tree


def validate(tree: Mapping[str, Any], where: str) -> Config:
    """The tree as a Config; the first mistake becomes one line, with the nearest key that exists."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, field_names(), 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{where}: unknown key {key!r}{hint}") from None
        message = first["msg"].removeprefix("Value error, ")
        shown = f"{key}: {message} (got {first['input']!r:.80})" if key and first["type"] != "value_error" else message
        prefix = f"{key}." if key and first["type"] == "value_error" else ""
        raise UserError(f"{where}: {prefix}{shown}") from None


def field_names(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every key as it is written in an override."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        section = section_of(field.annotation)
        if section:
            names += field_names(section, f"{prefix}{name}.")
    return names


def section_of(annotation: Any) -> type[Section] | None:
    """The Section a field holds, also inside `Section | None`."""
    for option in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, every field written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def differences(old: Config, new: Config) -> list[str]:
    """Keys whose values differ in a way that changes what is computed, as `key: old -> new`."""
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    keys = [key for key in before | after if before.get(key) != after.get(key) and key not in OPERATIONAL]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
