"""The metric reference, generated from the registry: `python -m featgan.config.metric_docs > docs/metrics.md`."""

from textwrap import fill

from featgan.config.metric_specs import (
    BASELINES,
    DEFAULT_SELECTION_METRICS,
    METRIC_FAMILIES,
    METRIC_PATTERNS,
    METRICS,
    Family,
    MetricSpec,
)

MAX_LINE_LENGTH = 119

HEADER = """# Metrics

`featgan evaluate` edits validation images, runs the classifier on the edits, and computes the metrics on this page.
The functions are in `featgan/metrics/`. They are pure functions of arrays, so you can use them on your own data.

This page is generated: `python -m featgan.config.metric_docs > docs/metrics.md`.

## How to read the numbers

**Symbols.** *x* is a source image, *f* the classifier, and *G* the generator. *c0 = f(x)* are the features of the
source. *c* is the target: the features of another validation image. *x' = G(x, c)* is the edited image, and
*c' = f(x')* are its features. Features are standardized with the training mean and standard deviation (SD). Features
that never vary on the training set are left out. A *pair* is one source with one target. A seed fixes the pairs.

**Intervals.** A metric has a `value`, a 95 % bootstrap interval from `low` to `high`, and a `count`. The interval comes
from 200 resamples of the images. Frechet distances of more than 256 features are the exception: they use 20 resamples
for the generator and none for the baselines, because they are slow to compute. The interval shows how much the value
depends on the choice of images. It does not show how much the value depends on the training run. The generator and the
baselines use the same resamples, so their intervals are comparable. `count` is the number of images in the metric. A
value of `null` means that no image could be measured, for example because no pair has a different target class.

**Suites.** A suite limits the number of validation images.

| `--suite` | pairs | swept images | use |
|---|---|---|---|
| `quick` | 2,000 | 128 | evaluation during training |
| `standard` | 10,000 | 256 | comparison of runs |
| `full` | all validation images | 1,024 | published results |

`--max-pairs 256` limits the pairs further, and the swept images to an eighth of it. Use it on a laptop without a GPU.
One pair takes about ten edits, and one swept image takes five edits per component. Some metrics depend on the number of
images, such as the Frechet distance and retrieval. Compare evaluations with equal numbers and equal data only.

**Optional models.** A feature-conditioned run always uses its classifier. The following models are used if you give
them. None of them is used in training.

| option | model | metrics |
|---|---|---|
| `--second-classifier SPEC` | another classifier, of any kind that `featgan extract` reads | family `second_classifier`, and the prefix `second_classifier_` in other families |
| `--factor-probe SPEC` | a classifier of the true factors of synthetic faces | family `factors` |
| `--inception FILE` | Inception-v3 with the weights in FILE | `fid`, `inception_kid` |
| `--lpips FILE` | torchvision's alexnet or vgg16 with the weights in FILE, and the linear heads of LPIPS | `reconstruction_lpips`, `cycle_lpips`, `edit_lpips` |

For the FID of papers, use the weights `pt_inception-2015-12-05` of pytorch-fid. torchvision's `inception_v3` gives
another feature space, whose distances are not comparable. If the shards contain the features of the second classifier,
its predictions for real images are read from this feature cache. Weights are read as tensors only (`.safetensors`, or
`.pth` without pickled code) and are never downloaded.

**Label-conditioned runs.** The targets are labels, and evaluation classifiers take the place of *f*. Give one with
`--classifier SPEC` for each data set. An evaluation classifier is trained on the same labels and is not used in
training the GAN, so no second classifier is needed. Metrics of a second data set have the prefix `second_dataset_`.
Without an evaluation classifier, only preservation and diversity are measured, and realism if you give `--inception`.

**Conclusions.** Every evaluation ends with sentences. Each sentence *supports* the edits as explanations of the
classifier, *limits* them, or states what is *unknown*. The rules are in `featgan/evaluation/conclusions.py`. For
example, target progress supports the edits only if its interval is above the intervals of its baselines.

**All families together.** A single family is not enough.

| metrics | meaning |
|---|---|
| high faithfulness, poor realism or preservation | the generator changes the prediction with a texture; the edits explain nothing |
| perfect preservation and realism, progress near 0 | the generator copies its source |
| faithfulness equal to `shuffled_target` or `training_mean` | the edits do not depend on the target |
| faithfulness between the baselines and the upper bounds, realism near that of real images, coarse edits | the edits are reliable, to the extent of the progress |

A generator can always improve a metric that uses its classifier, with edits that change only the prediction of this
classifier. Compare such a metric with others that do not use it: pixels, a second classifier with another architecture,
and your own impression.

**Selection of checkpoints.** `evaluation.selection_metric` can be any metric with *yes* in the column `selects`, also
with the prefix `second_dataset_`. The default depends on the condition kind:

{defaults}
"""  # noqa: E501

INTRODUCTIONS: dict[Family, str] = {
    "faithfulness": """\
These metrics compare the edited image with its target: the features, the predictions, and the rank in a gallery.

Dimensions with a constant target are left out of `ccc`, because no edit can agree with them. A pair with c = c0 has no
target progress and is not counted.

Predictions are compared with the classifier's prediction for the target image, or with the label for label-conditioned
runs. `label_agreement` is misleading if classes are unbalanced: if half of the faces are neutral, a copy agrees for
many pairs. `validity` and `label_macro_f1` do not have this problem. `validity` is the term of the
counterfactual literature.

Pearson correlation ignores scale and offset, and CCC does not. A large difference between them means that the edits
are too weak or have an offset.""",
    "sufficiency": """\
For these metrics, only the first components are set to their target; the rest of the source is kept. If
`sufficiency_at_2` is nearly equal to `validity`, two components are enough to change the prediction.""",
    "second_classifier": """\
A generator can learn edits that change only the prediction of the classifier that it was trained with. The second
classifier was not used in training. It should have another architecture, and ideally other training data, because
similar classifiers have similar weaknesses. The metrics use the pairs whose target class differs from the source class.
Classes are matched by name.

The baseline `target_real` has the predictions of both classifiers for the real target image. It is an upper bound.
`copy_source` has the predictions before the edit. Features are in standard deviations of the real source images.

If both classifiers predict valence and arousal or the same attributes, the metrics are those of faithfulness with the
prefix `second_classifier_`, such as `second_classifier_valence_ccc`. Their targets are the first classifier's outputs.
For all other classifiers there are only progress, distances, diversity and similarity.""",
    "traversal": """\
Each component is swept over five values from -2 to 2 SD, and all other components keep the value of the source. The
components of the edited images are measured.

A sweep without a measured change (less than 10⁻⁴ SD, the rounding of the classifier) has a score of 0. Values of a
sweep that differ by less are ties. `diagonal_dominance` of a random response is about 1/K for K measured components,
so compare it for equal K only. Changes of components that are not swept are not counted.

The metrics that start with `projection_` measure a reconstruction from the first 0, 1, 2, 4, ... components of the
source, with all other components at their mean. With 0 components every target is the mean, so only the distance is
measured.""",
    "preservation": """\
These metrics are computed from pixels, which range from -1 to 1. An L1 of 0.02 is 1 % of this range.

A reconstruction is an edit to the source's own features, so nothing should change. A cycle is an edit to the target
and an edit back. The size of an edit has no ideal value: 0 is a copy, and a large value is another image.

`edit_low_frequency_share` separates edits that people see from edits that only a network detects. White noise has π/64
= 0.05, and a moved mouth has nearly 1. A small edit with fine texture and high target progress is typical of an
adversarial pattern.

The cosines of the second classifier show whether the identity of a person is preserved only if the second classifier
recognizes persons. Use a face recognition model for this. The value of `target_real` is about that of two different
persons.""",
    "realism": """\
The Frechet distance compares Gaussians with the mean *m* and the covariance *S* of real and of edited images: ‖m -
m'‖² + tr(S + S' - 2 (S^½ S' S^½)^½). Its unit depends on the feature space, so distances in two spaces are not
comparable. It is biased upward for few images: two sets of N images from the same Gaussian of F uncorrelated features
are about F²/2N + 2F/N apart. For 64 features and 2,000 images this is 1.1. Compare it for equal N only, and with the
distance between two sets of real images. Its interval is the value ± 1.96 SD of the resamples, because resampling
itself raises the distance. Above 256 features, there are 20 resamples for the generator and none for the baselines.

The kernel distance (KID) is the squared maximum mean discrepancy with the kernel (⟨x, y⟩ / F + 1)³. It is unbiased:
the expected value for two sets from the same distribution is 0 for any number of images. It can be negative, and values
for different N are comparable. At most 4,000 images of each set are used.

All distances compare the first half of the sources with the edits of the second half. Distances of real images compare
the first half with the second half itself. Features of classifiers are standardized; Inception features are not.""",
    "diversity": """\
Up to 64 sources are edited to the same target, for four targets. The edits should differ as much as their sources,
except in what the target determines.""",
    "factors": """\
These metrics exist for synthetic faces only. A factor probe, trained on synthetic faces, estimates every true factor
in the edited images. Components are in whitened units, and factors are in SD of the training set. Expression factors
define the expression, and nuisance factors do not.

The size of a change is taken for each image before the mean, so that changes in opposite directions do not cancel. The
noise of the probe therefore keeps the nuisance change above 0 for a perfect generator, too. The report contains the
signed response of each factor to each component.""",
    "subgroups": """\
Averages hide failures for rare targets. The pairs are split by their target and measured again, with all baselines.

| `group` | `name` | pairs |
|---|---|---|
| `class` | a class | the target image is predicted as this class; its label counts if no classes are predicted |
| `octant` | 1 to 8 | the target's valence and arousal are in this 45° octant |
| `component K` | a range | the target of component K is between two training quantiles: 0, 10, 50, 90 and 100 % |

Octant 1 has the angles from 0° at valence 1 to 45°, toward arousal 1. Classes and octants also have
`target_progress_pooled`, `centered_cosine`, `retrieval_top1`, `validity`, `edit_l1`, `edit_low_frequency_share` and
`second_classifier_agreement`, as defined in their families. Components have `component_progress`, `target_mean` and
`measured_mean` only. CCC is left out: targets of a subgroup hardly vary, which alone lowers the CCC.

`color_shift` shows edits that use color. If all edits toward a class shift the color, but real images with these
features (`nearest_real`) do not, the classifier may respond to color, or the generator shifts the color without need.

Subgroups are not in `metrics`, TensorBoard or `metrics.jsonl`, because hundreds of curves would hide the others.""",
}
"""Family => what it measures."""

LIMITATIONS: dict[Family, str] = {
    "faithfulness": (
        "whether a person sees the change, and whether the image still shows a face. Half progress for every pair "
        "and full progress for half of the pairs have the same mean; the median and the interval help."
    ),
    "sufficiency": ("whether the remaining components have an effect of their own."),
    "second_classifier": (
        "whether a person sees the change. A second classifier with a similar architecture can respond to the same "
        "texture as the first one, so look at realism and at the images, too. Progress below 1 is not always a "
        "fault: the target image differs from the source in more than the first classifier's features."
    ),
    "traversal": (
        "whether a component changes another one in opposite directions for different faces, because the cross-talk"
        " matrix is a mean over images. A slope or diagonal dominance below 1 is not always a fault of the "
        "generator: if components change together in all real images, `nearest_real` has low values, too."
    ),
    "preservation": (
        "whether the edit is good. A generator can hide the source in the edit and recover it for the cycle."
    ),
    "realism": (
        "the quality of single images, or anything that the features do not represent. The GAN is trained to match the "
        "features of the training classifier. A small distance in these features alone proves nothing. "
        "The KID of features with heavy tails has a wide interval, because a few images dominate the third power."
    ),
    "diversity": (
        "how much the edits of one source can vary, because *G* has one output for a source and a target. A copy "
        "keeps all diversity. In the second classifier's features, a ratio below 1 is correct if they represent the"
        " target."
    ),
    "factors": (
        "whether a nuisance change is a fault of the generator. A component of the classifier can respond to a "
        "nuisance factor. A ratio above 0 is then a property of the classifier."
    ),
    "subgroups": (
        "anything about subgroups with few pairs; see their intervals. There is no conclusion from fewer than 20 "
        "pairs. Chance alone gives a color shift of about √(3/N) for N pairs."
    ),
}
"""Family => what its metrics cannot show."""

BASELINES_HEADER = """## Baselines

The same functions measure simple replacements of the edited image. Their values are next to those of the generator.

| baseline | replacement | purpose |
|---|---|---|"""

FOOTER = """## The file

An evaluation is stored in `RUN/evaluations/step-XXXXXXXX-SUITE.json`. If `--max-pairs` limits it, the name is
`step-XXXXXXXX-SUITE-PAIRS.json`, and the schedule does not count it as the complete suite. The metrics are also written
to TensorBoard and as a line of `metrics.jsonl`. The schema is `EvaluationDocument` in
`featgan/run/evaluation_document.py`. Any part may be missing, and programs that read the file must accept this.

| key | content |
|---|---|
| `step`, `suite`, `blackbox` | the checkpoint, the suite, and the classifier (null for label-conditioned runs) |
| `pairs`, `swept_images` | numbers of images |
| `second_classifier` | `spec`, `layer`, `sha256`, and `feature_cache`: the cache that its predictions for real images were read from; null without one |
| `weights` | `file` and `sha256` of the weights for `inception` and `lpips` |
| `arguments` | options of `featgan evaluate` that repeat the evaluation |
| `metrics` | metric: `value`, `low`, `high`, `count` |
| `baselines` | the same for each baseline |
| `subgroups` | list of `group`, `name`, `pairs`, `metrics`, `baselines` |
| `headline` | the first table in the terminal: metrics with `label` and `note` |
| `conclusions` | list of `family`, `kind` (`supports`, `limits`, `unknown`), `text` |
| `tables` | list of tables to be shown: `family`, `title`, `columns`, `rows` |
| `components` | for each component from 0: `index`, `slope`, `monotonicity`, `linearity`, `dominance`, `ccc`, `nuisance_ratio` |
| `crosstalk` | the matrix M: mean change of component j per unit of target change of component k |
"""  # noqa: E501


def build_metric_reference() -> str:
    """Return the complete page as Markdown."""
    defaults = "\n".join(f"- `{kind}`: `{name}`" for kind, name in DEFAULT_SELECTION_METRICS.items())
    sections = [family_section(family, title) for family, title in METRIC_FAMILIES.items()]
    return "\n".join([HEADER.format(defaults=defaults), *sections, baseline_section(), "", FOOTER.rstrip()])


def family_section(family: Family, title: str) -> str:
    """Return the heading, introduction, table and limitations of a family."""
    specs = [spec for spec in (*METRICS.values(), *METRIC_PATTERNS) if spec.family == family]
    lines = [
        f"## {title}",
        "",
        INTRODUCTIONS[family],
        "",
        "| metric | meaning | details | range | ideal | better | selects |",
        "|---|---|---|---|---|---|---|",
        *(metric_row(spec) for spec in specs),
        "",
        fill(f"*Cannot show:* {LIMITATIONS[family]}", MAX_LINE_LENGTH, break_long_words=False, break_on_hyphens=False),
        "",
    ]
    return "\n".join(lines)


def metric_row(spec: MetricSpec) -> str:
    """Return a metric as a row of the table of its family."""
    better = {True: "higher", False: "lower", None: ""}[spec.higher_is_better]
    selects = "yes" if spec.selects_checkpoints else ""
    cells = (f"`{spec.name}`", spec.description, spec.formula, spec.value_range, spec.ideal, better, selects)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def baseline_section() -> str:
    """Return the table of the baselines."""
    rows = [f"| `{spec.name}` | {spec.label} | {spec.purpose} |" for spec in BASELINES.values()]
    return "\n".join([BASELINES_HEADER, *rows])


if __name__ == "__main__":
    print(build_metric_reference())
