"""The metric registry: name, label, description, direction, range and places of display of every metric.

The terminal, TensorBoard, the report, the leaderboard and docs/metrics.md take all metric texts from here. The registry
is here and not in `featgan.metrics`, because the configuration and the command line need it without torch.

To add a metric, compute it in `featgan.metrics`, call the function in `featgan.evaluation`, and add one entry here.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

Family = Literal[
    "faithfulness",
    "sufficiency",
    "second_classifier",
    "traversal",
    "preservation",
    "realism",
    "diversity",
    "factors",
    "subgroups",
]

TerminalTable = Literal["target", "edit", "realism", "second_classifier"]

METRIC_FAMILIES: dict[Family, str] = {
    "faithfulness": "Faithfulness: does the edited image reach the target?",
    "sufficiency": "Sufficiency: how many components change the prediction?",
    "second_classifier": "Second classifier: does another classifier detect the edit?",
    "traversal": "Traversal: does each component change alone?",
    "preservation": "Preservation: what does the edit leave unchanged?",
    "realism": "Realism: are edited images close to real images?",
    "diversity": "Diversity: do edits to the same target stay different?",
    "factors": "True factors, as estimated by the factor probe",
    "subgroups": "Subgroups: for which targets do the edits fail?",
}
"""Family => title, in the order shown. The metrics of `subgroups` exist in subgroup tables only."""

SUBGROUP_TITLES = {
    "class": "By target class",
    "octant": "By octant of target valence, arousal (octant 1: angles from 0° at valence 1 to 45°, toward arousal 1)",
    "component": "By range of each component's target value, between training quantiles",
}
"""Kind of subgroup => title of its table."""

TERMINAL_TABLES: dict[TerminalTable, str] = {
    "target": "target",
    "edit": "edit",
    "realism": "realism",
    "second_classifier": "second classifier",
}
"""Terminal table => its title, in the order printed."""


@dataclass(frozen=True)
class MetricSpec:
    """One metric, or a group of metrics whose name has a placeholder (`component_{component}_slope`)."""

    name: str
    family: Family
    label: str
    """Short name for tables and charts."""
    description: str
    """One sentence without a formula."""
    higher_is_better: bool | None
    """None if neither direction is better."""
    value_range: str
    ideal: str = ""
    """The value of a perfect generator; empty if there is none."""
    formula: str = ""
    """How the value is computed, for docs/metrics.md."""
    heading: str = ""
    """At most 8 characters, for the columns of the terminal tables."""
    headline: bool = False
    """Shown in the first table of the terminal and the report."""
    terminal_table: TerminalTable | None = None
    """The terminal table that compares it with the baselines."""
    baseline_chart: bool = False
    """Shown in the report's chart of the generator and the baselines; 1 is the best value."""
    leaderboard: bool = False
    """A column of the leaderboard."""
    hparams: bool = False
    """A column of TensorBoard's table of runs."""
    selects_checkpoints: bool = False
    """Allowed as `evaluation.selection_metric`."""
    default_for: str = ""
    """The condition kind for which it is the default `evaluation.selection_metric`."""


@dataclass(frozen=True)
class BaselineSpec:
    """A simple replacement for the generator, which the same functions measure."""

    name: str
    short_label: str
    """At most 16 characters, for the rows of the terminal tables."""
    label: str
    """A noun phrase that describes the replacement."""
    purpose: str
    """What its scores show, for docs/metrics.md."""


BASELINES = {
    spec.name: spec
    for spec in (
        BaselineSpec(
            "copy_source", "unchanged source", "the unchanged source image",
            "The score of a generator that does nothing: perfect preservation and diversity, no progress and no slope. "
            "Its Frechet distance and KID are the noise floor.",
        ),
        BaselineSpec(
            "shuffled_target", "shuffled target", "the edit to another pair's target",
            "The score of any plausible edit. The generator must score higher.",
        ),
        BaselineSpec(
            "training_mean", "training mean", "the mean features of the training set",
            "The score of a constant prediction.",
        ),
        BaselineSpec(
            "nearest_real", "nearest real", "the nearest real image",
            "The training image (out of at most 50,000) whose features are nearest to the target. "
            "It shows what the data can reach: it is real and faithful, but it keeps nothing of the source.",
        ),
        BaselineSpec(
            "target_jpeg", "target as JPEG", "the target image after JPEG compression",
            "The noise of the classifier: the score of the target image itself after JPEG at quality 75.",
        ),
        BaselineSpec(
            "source_jpeg", "source as JPEG", "the source image after JPEG compression",
            "The size of a barely visible change in pixels: JPEG at quality 75.",
        ),
        BaselineSpec(
            "target_flipped", "flipped target", "the target image, horizontally flipped",
            "The noise of the classifier for a change that leaves the meaning of the image unchanged.",
        ),
        BaselineSpec(
            "target_real", "real target", "the real target image",
            "The upper bound that the classifier's own errors allow: "
            "its predictions for real images with the target's features or label.",
        ),
    )
}  # fmt: skip
"""Baseline => what replaces the edited image, in the order shown."""


METRICS: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        MetricSpec(
            "target_progress", "faithfulness", "target progress (mean)",
            "Progress of the features from source (0) to target (1), mean over pairs.",
            True, "any", "1", "mean over pairs of ⟨c' - c0, c - c0⟩ / ‖c - c0‖²", selects_checkpoints=True,
        ),
        MetricSpec(
            "target_progress_median", "faithfulness", "target progress (median)",
            "Progress of the features from source (0) to target (1), median over pairs.",
            True, "any", "1", "lower of the two middle values; pairs with a small target change do not dominate",
            selects_checkpoints=True,
        ),
        MetricSpec(
            "target_progress_pooled", "faithfulness", "target progress",
            "Progress of the features from source (0) to target (1), pooled over pairs.",
            True, "any", "1", "Σ⟨c' - c0, c - c0⟩ / Σ‖c - c0‖²", "progress",
            headline=True, terminal_table="target", baseline_chart=True, leaderboard=True, hparams=True,
            selects_checkpoints=True,
        ),
        MetricSpec(
            "off_target_drift", "faithfulness", "off-target drift (mean)",
            "Feature change orthogonal to the target direction, relative to the target change; mean.",
            False, "≥ 0", "0", "mean over pairs of ‖(c' - c0) - target_progress · (c - c0)‖ / ‖c - c0‖",
        ),
        MetricSpec(
            "off_target_drift_median", "faithfulness", "off-target drift",
            "Feature change orthogonal to the target direction, relative to the target change; median.",
            False, "≥ 0", "0", heading="drift", terminal_table="target",
        ),
        MetricSpec(
            "ccc", "faithfulness", "concordance (CCC)",
            "Concordance of the target features and the features of the edited image.",
            True, "-1 to 1", "1",
            "mean over dimensions of 2 cov(c, c') / (var c + var c' + (mean c - mean c')²); population variances",
            "CCC",
            headline=True, terminal_table="target", baseline_chart=True, leaderboard=True, hparams=True,
            selects_checkpoints=True, default_for="features",
        ),
        MetricSpec(
            "r2", "faithfulness", "R²",
            "Share of the variance of the target features that is explained by the features of the edited images.",
            True, "≤ 1", "1", "1 - Σ(c - c')² / Σ(c - mean c)² over all dimensions; 0 is as good as the mean",
            selects_checkpoints=True,
        ),
        MetricSpec(
            "centered_cosine", "faithfulness", "centered cosine",
            "Cosine of target features and the edited image's features; it compares directions only.",
            True, "-1 to 1", "1", "mean over pairs of cos(c, c'), both centered at the training mean",
            selects_checkpoints=True,
        ),
        MetricSpec(
            "components_ccc", "faithfulness", "components: CCC",
            "CCC over all whitened components; every component has the same weight.",
            True, "-1 to 1", "1", selects_checkpoints=True,
        ),
        MetricSpec(
            "components_r2", "faithfulness", "components: R²",
            "R² over all whitened components; every component has the same weight.",
            True, "≤ 1", "1",
        ),
        MetricSpec(
            "components_centered_cosine", "faithfulness", "components: cosine",
            "Cosine over all whitened components; every component has the same weight.",
            True, "-1 to 1", "1",
        ),
        MetricSpec(
            "retrieval_top1", "faithfulness", "retrieval (top 1)",
            "Share of pairs whose target is nearest to the edited image in a gallery.",
            True, "0 to 1", "1", "chance level: 1 / retrieval_gallery_size", "top 1",
            headline=True, terminal_table="target", baseline_chart=True, leaderboard=True, selects_checkpoints=True,
        ),
        MetricSpec(
            "retrieval_top5", "faithfulness", "retrieval (top 5)",
            "Share of pairs whose target is among the 5 nearest in the gallery.",
            True, "0 to 1", "1", "chance level: 5 / retrieval_gallery_size", selects_checkpoints=True,
        ),
        MetricSpec(
            "retrieval_mrr", "faithfulness", "retrieval (MRR)",
            "Mean reciprocal rank of the target in the gallery.",
            True, "0 to 1", "1", "mean of 1 / rank; equal distances get the middle rank", selects_checkpoints=True,
        ),
        MetricSpec(
            "retrieval_gallery_size", "faithfulness", "retrieval gallery size",
            "Number of feature vectors in the gallery, including the target.",
            None, "1 to 1000", "", "compare retrieval at equal gallery sizes only: a smaller gallery is easier",
        ),
        MetricSpec(
            "label_agreement", "faithfulness", "label agreement",
            "Share of pairs for which the classifier predicts the target class.",
            True, "0 to 1", "1", heading="labels", headline=True, terminal_table="target", baseline_chart=True,
            leaderboard=True, hparams=True, selects_checkpoints=True, default_for="expression",
        ),
        MetricSpec(
            "label_macro_f1", "faithfulness", "label macro F1",
            "F1 score of each target class, averaged over classes; rare classes have the same weight.",
            True, "0 to 1", "1", selects_checkpoints=True,
        ),
        MetricSpec(
            "attribute_agreement", "faithfulness", "attribute agreement",
            "Share of attributes that are predicted as in the target.",
            True, "0 to 1", "1", heading="attrs", headline=True, terminal_table="target", baseline_chart=True,
            leaderboard=True, hparams=True, selects_checkpoints=True, default_for="attributes",
        ),
        MetricSpec(
            "attributes_kept", "faithfulness", "attributes kept",
            "Of the attributes that are equal in source and target, the share whose prediction stays equal.",
            True, "0 to 1", "1", selects_checkpoints=True,
        ),
        MetricSpec(
            "validity", "faithfulness", "validity",
            "Label agreement for pairs whose target class differs from the source class.",
            True, "0 to 1", "1",
            "for attributes: share of the attributes to change that change; a copy scores 0", "validity",
            headline=True, terminal_table="target", baseline_chart=True, leaderboard=True, selects_checkpoints=True,
        ),
        MetricSpec(
            "flip_rate", "faithfulness", "flip rate",
            "Share of all pairs whose predicted class changes, to any class.",
            None, "0 to 1",
        ),
        MetricSpec(
            "valence_ccc", "faithfulness", "valence: CCC",
            "Concordance of the target valence and the valence predicted for the edited image.",
            True, "-1 to 1", "1", heading="valence", terminal_table="target", baseline_chart=True, leaderboard=True,
            selects_checkpoints=True, default_for="valence_arousal",
        ),
        MetricSpec(
            "valence_pearson", "faithfulness", "valence: Pearson correlation",
            "Correlation of target and predicted valence; it ignores scale and offset.",
            True, "-1 to 1", "1", selects_checkpoints=True,
        ),
        MetricSpec(
            "valence_rmse", "faithfulness", "valence: RMSE",
            "Root mean squared error of the predicted valence.",
            False, "≥ 0", "0", selects_checkpoints=True,
        ),
        MetricSpec(
            "valence_sign_agreement", "faithfulness", "valence: sign agreement",
            "Share of pairs for which target and predicted valence have the same sign.",
            True, "0 to 1", "1",
        ),
        MetricSpec(
            "arousal_ccc", "faithfulness", "arousal: CCC",
            "Concordance of the target arousal and the arousal predicted for the edited image.",
            True, "-1 to 1", "1", heading="arousal", terminal_table="target", baseline_chart=True,
            selects_checkpoints=True,
        ),
        MetricSpec(
            "arousal_pearson", "faithfulness", "arousal: Pearson correlation",
            "Correlation of target and predicted arousal; it ignores scale and offset.",
            True, "-1 to 1", "1", selects_checkpoints=True,
        ),
        MetricSpec(
            "arousal_rmse", "faithfulness", "arousal: RMSE",
            "Root mean squared error of the predicted arousal.",
            False, "≥ 0", "0", selects_checkpoints=True,
        ),
        MetricSpec(
            "arousal_sign_agreement", "faithfulness", "arousal: sign agreement",
            "Share of pairs for which target and predicted arousal have the same sign.",
            True, "0 to 1", "1",
        ),
        MetricSpec(
            "second_classifier_agreement", "second_classifier", "second classifier's agreement",
            "Label agreement of the second classifier for pairs with a different target class.",
            True, "0 to 1", "that of `target_real`", heading="labels",
            headline=True, terminal_table="second_classifier", baseline_chart=True,
        ),
        MetricSpec(
            "classifier_agreement", "second_classifier", "first classifier's agreement",
            "Label agreement of the first classifier for pairs with a different target class.",
            True, "0 to 1", "1", heading="first", terminal_table="second_classifier",
        ),
        MetricSpec(
            "agreement_gap", "second_classifier", "agreement gap",
            "Agreement of the first classifier minus that of the second.",
            False, "-1 to 1", "0", "mean difference per pair; the interval is narrower than those of both shares",
            headline=True,
        ),
        MetricSpec(
            "classifiers_agree", "second_classifier", "classifiers agree",
            "Share of pairs for which both classifiers predict the same class for the edited image.",
            True, "0 to 1", "that of `target_real`", heading="agree", terminal_table="second_classifier",
        ),
        MetricSpec(
            "change_agreement", "second_classifier", "change agreement",
            "Of the pairs whose first prediction changes, the share whose second prediction changes to the same class.",
            True, "0 to 1", "1", "without pairs for which the second classifier predicts that class before the edit",
        ),
        MetricSpec(
            "change_cosine", "second_classifier", "change cosine",
            "Cosine between the probability changes of the two classifiers, for the classes that both have.",
            True, "-1 to 1", "1", "mean over pairs; 0 if one of them does not change",
        ),
        MetricSpec(
            "second_classifier_target_progress_pooled", "second_classifier", "target progress (second classifier)",
            "Progress toward the target image in the second classifier's features, over all pairs.",
            True, "any", "below 1 also for a perfect edit", heading="progress", terminal_table="second_classifier",
        ),
        MetricSpec(
            "second_classifier_frechet_distance", "second_classifier", "Frechet distance (second classifier)",
            "Frechet distance of edited to real images in the second classifier's features.",
            False, "≥ 0", "that of real images", heading="Frechet", terminal_table="second_classifier",
        ),
        MetricSpec(
            "second_classifier_frechet_distance_real", "second_classifier",
            "Frechet distance of real images (second classifier)",
            "Frechet distance of real to real images in the second classifier's features.",
            None, "≥ 0",
        ),
        MetricSpec(
            "second_classifier_kid", "second_classifier", "KID (second classifier)",
            "Kernel distance of edited to real images in the second classifier's features.",
            False, "any", "0", heading="KID", terminal_table="second_classifier",
        ),
        MetricSpec(
            "second_classifier_kid_real", "second_classifier", "KID of real images (second classifier)",
            "Kernel distance of real to real images in the second classifier's features.",
            None, "any", "0",
        ),
        MetricSpec(
            "monotonicity", "traversal", "monotonicity",
            "Rank correlation of target and measured values along a sweep.",
            True, "-1 to 1", "1", "Spearman correlation per image, mean",
            headline=True, baseline_chart=True, leaderboard=True, hparams=True, selects_checkpoints=True,
        ),
        MetricSpec(
            "monotone_share", "traversal", "monotone sweeps",
            "Share of sweeps with a rank correlation of at least 0.9.",
            True, "0 to 1", "1", selects_checkpoints=True,
        ),
        MetricSpec(
            "slope", "traversal", "slope",
            "Measured change of a component per unit of target change.",
            True, "any", "1", "least-squares slope, mean", "slope", terminal_table="edit", baseline_chart=True,
        ),
        MetricSpec(
            "linearity", "traversal", "linearity",
            "R² of a straight line through a sweep.",
            True, "0 to 1", "1", selects_checkpoints=True,
        ),
        MetricSpec(
            "diagonal_dominance", "traversal", "diagonal dominance",
            "Share of the measured change that is in the swept component.",
            True, "0 to 1", "1",
            "Σₖ|M[k, k]| / Σₖⱼ|M[k, j]|; M[k, j] is the mean change of component j per unit of component k",
            "diagonal",
            headline=True, terminal_table="edit", baseline_chart=True, leaderboard=True, selects_checkpoints=True,
        ),
        MetricSpec(
            "reconstruction_l1", "preservation", "reconstruction L1",
            "Mean absolute pixel change of an edit to the source's own features.",
            False, "0 to 2", "0", "mean |G(x, c0) - x|; pixels range from -1 to 1", "recon",
            headline=True, terminal_table="edit", leaderboard=True, hparams=True, selects_checkpoints=True,
        ),
        MetricSpec(
            "reconstruction_psnr", "preservation", "reconstruction PSNR",
            "Peak signal-to-noise ratio of an edit to the source's own features, in dB.",
            True, "0 to 100", "100", selects_checkpoints=True,
        ),
        MetricSpec(
            "reconstruction_ssim", "preservation", "reconstruction SSIM",
            "Structural similarity of the source and its edit to the source's own features.",
            True, "-1 to 1", "1", selects_checkpoints=True,
        ),
        MetricSpec(
            "reconstruction_lpips", "preservation", "reconstruction LPIPS",
            "Perceptual distance of the source and its edit to the source's own features.",
            False, "≥ 0", "0", "needs `--lpips`; images below 64 px are enlarged",
        ),
        MetricSpec(
            "cycle_l1", "preservation", "cycle L1",
            "Mean absolute pixel change after an edit to the target and an edit back to the source.",
            False, "0 to 2", "0", "mean |G(G(x, c), c0) - x|", selects_checkpoints=True,
        ),
        MetricSpec(
            "cycle_psnr", "preservation", "cycle PSNR",
            "Peak signal-to-noise ratio after an edit and an edit back, in dB.",
            True, "0 to 100", "100", selects_checkpoints=True,
        ),
        MetricSpec(
            "cycle_ssim", "preservation", "cycle SSIM",
            "Structural similarity after an edit and an edit back.",
            True, "-1 to 1", "1", selects_checkpoints=True,
        ),
        MetricSpec(
            "cycle_lpips", "preservation", "cycle LPIPS",
            "Perceptual distance after an edit and an edit back.",
            False, "≥ 0", "0", "needs `--lpips`",
        ),
        MetricSpec(
            "edit_l1", "preservation", "edit size (L1)",
            "Mean absolute pixel change of the edit; 0 is a copy.",
            None, "0 to 2", "", "mean |x' - x|", "edit", headline=True, terminal_table="edit",
        ),
        MetricSpec(
            "edit_low_frequency_share", "preservation", "low-frequency share of the edit",
            "Share of the edit's energy at low frequencies, which people can see; white noise has 0.05.",
            True, "0 to 1", "", "energy below a quarter of the Nyquist frequency, by radius, constant part included",
            baseline_chart=True,
        ),
        MetricSpec(
            "edit_l1_when_changed", "preservation", "edit size (L1), different target",
            "Edit size for pairs with a different target.",
            None, "0 to 2", "", "the target class, octant or attributes differ from the source",
        ),
        MetricSpec(
            "edit_low_frequency_share_when_changed", "preservation", "low-frequency share, different target",
            "Low-frequency share of the edit for pairs with a different target.",
            True, "0 to 1", "", "at 0.5 or more, people can see the edit", "low freq",
            headline=True, terminal_table="edit", baseline_chart=True,
        ),
        MetricSpec(
            "edit_uniform_share_when_changed", "preservation", "uniform share, different target",
            "Share of the edit's energy that is equal in all pixels, which is a color shift only.",
            False, "0 to 1", "", "on the same pairs; the uniform part counts as low-frequency",
        ),
        MetricSpec(
            "edit_lpips", "preservation", "edit LPIPS",
            "Perceptual distance of the edited image and the source.",
            None, "≥ 0", "", "needs `--lpips`", "LPIPS", terminal_table="realism",
        ),
        MetricSpec(
            "second_classifier_reconstruction_cosine", "preservation", "reconstruction cosine (second classifier)",
            "Cosine of the second classifier's features of the source and of its reconstruction.",
            True, "-1 to 1", "1", "both centered at the mean of real images",
        ),
        MetricSpec(
            "second_classifier_edit_cosine", "preservation", "edit cosine (second classifier)",
            "Cosine of the second classifier's features of the source and of the edited image.",
            True, "-1 to 1", "as high as the edit allows", "both centered at the mean of real images", "cosine",
            terminal_table="second_classifier",
        ),
        MetricSpec(
            "frechet_distance", "realism", "Frechet distance",
            "Frechet distance of edited to real images in the classifier's features.",
            False, "≥ 0", "that of real images", heading="Frechet", headline=True, terminal_table="realism",
            leaderboard=True, hparams=True, selects_checkpoints=True,
        ),
        MetricSpec(
            "frechet_distance_real", "realism", "Frechet distance of real images",
            "Frechet distance of real to real images: the noise floor.",
            None, "≥ 0", headline=True,
        ),
        MetricSpec(
            "kid", "realism", "KID",
            "Kernel distance of edited to real images in the classifier's features.",
            False, "any", "0", heading="KID", terminal_table="realism", selects_checkpoints=True,
        ),
        MetricSpec(
            "kid_real", "realism", "KID of real images",
            "Kernel distance of real to real images: the noise floor.",
            None, "any", "0",
        ),
        MetricSpec(
            "fid", "realism", "FID",
            "Frechet distance of edited to real images in Inception features.",
            False, "≥ 0", "that of real images", "needs `--inception`", "FID", terminal_table="realism",
        ),
        MetricSpec(
            "fid_real", "realism", "FID of real images",
            "Frechet distance of real to real images in Inception features.",
            None, "≥ 0", "", "needs `--inception`",
        ),
        MetricSpec(
            "inception_kid", "realism", "Inception KID",
            "Kernel distance of edited to real images in Inception features.",
            False, "any", "0", "needs `--inception`; papers report it times 1000", "inc. KID", terminal_table="realism",
        ),
        MetricSpec(
            "inception_kid_real", "realism", "Inception KID of real images",
            "Kernel distance of real to real images in Inception features.",
            None, "any", "0", "needs `--inception`",
        ),
        MetricSpec(
            "diversity", "diversity", "diversity",
            "Mean pixel distance of edits of different sources to the same target.",
            True, "0 to 2", "", "mean over targets and pairs of sources of mean |x'ᵢ - x'ⱼ|",
            selects_checkpoints=True,
        ),
        MetricSpec(
            "diversity_ratio", "diversity", "diversity ratio",
            "Diversity of the edits relative to the sources; 0 is one image for all.",
            True, "≥ 0", "near 1", heading="diverse", headline=True, terminal_table="edit", selects_checkpoints=True,
        ),
        MetricSpec(
            "second_classifier_diversity", "diversity", "diversity (second classifier)",
            "Mean distance of edits of different sources to the same target, in the second classifier's features.",
            True, "≥ 0",
        ),
        MetricSpec(
            "second_classifier_diversity_ratio", "diversity", "diversity ratio (second classifier)",
            "Diversity of the edits relative to that of the sources, in the second classifier's features.",
            True, "≥ 0", "below 1 if the second classifier responds to the target",
        ),
        MetricSpec(
            "factor_change_expression", "factors", "change of expression factors",
            "Change of factors that define the expression, per SD of a component.",
            True, "≥ 0", "large", headline=True,
        ),
        MetricSpec(
            "factor_change_nuisance", "factors", "change of nuisance factors",
            "Change of factors that do not define the expression, per SD of a component.",
            False, "≥ 0", "0",
        ),
        MetricSpec(
            "factor_nuisance_ratio", "factors", "nuisance ratio",
            "Change of nuisance factors relative to expression factors.",
            False, "≥ 0", "0", heading="nuisance", headline=True, terminal_table="edit", selects_checkpoints=True,
        ),
        MetricSpec(
            "factor_reconstruction_expression_error", "factors", "expression error of the reconstruction",
            "Error of the probe's expression factors on reconstructions, in SD.",
            False, "≥ 0", "`factor_probe_expression_error`", "mean |probe on G(x, c0) - truth|",
        ),
        MetricSpec(
            "factor_reconstruction_nuisance_error", "factors", "nuisance error of the reconstruction",
            "Error of the probe's nuisance factors on reconstructions, in SD.",
            False, "≥ 0", "`factor_probe_nuisance_error`", "mean |probe on G(x, c0) - truth|",
        ),
        MetricSpec(
            "factor_probe_expression_error", "factors", "expression error of the probe",
            "Error of the probe's expression factors on source images, in SD.",
            None, "≥ 0", "0", "mean |probe on x - truth|",
        ),
        MetricSpec(
            "factor_probe_nuisance_error", "factors", "nuisance error of the probe",
            "Error of the probe's nuisance factors on source images, in SD.",
            None, "≥ 0", "0", "mean |probe on x - truth|",
        ),
        MetricSpec(
            "factor_probe_r2", "factors", "R² of the probe",
            "R² of the probe's factors on source images.",
            None, "≤ 1", "1",
        ),
        MetricSpec(
            "factor_probe_readable", "factors", "readable factors",
            "Share of factors that the probe estimates with an R² of at least 0.5.",
            None, "0 to 1", "1", "all other factor metrics leave out the remaining factors",
        ),
        MetricSpec(
            "component_progress", "subgroups", "component progress",
            "Progress of one component from the source (0) to the target (1).",
            True, "any", "1", "Σ(c'ₖ - c0ₖ)(cₖ - c0ₖ) / Σ(cₖ - c0ₖ)² of whitened component k",
        ),
        MetricSpec(
            "target_mean", "subgroups", "mean target",
            "Mean target value of the component, in SD.",
            None, "any",
        ),
        MetricSpec(
            "measured_mean", "subgroups", "mean measured value",
            "Mean value of the component in the edited images, in SD.",
            None, "any", "`target_mean`",
        ),
        MetricSpec(
            "valence_arousal_rmse", "subgroups", "valence and arousal: RMSE",
            "Root mean squared distance of target and predicted points (valence, arousal).",
            False, "≥ 0", "0",
        ),
        MetricSpec(
            "color_shift", "subgroups", "color shift",
            "Mean color change of all edits in the subgroup, in SD of real images' mean colors.",
            False, "≥ 0", "that of `nearest_real`",
            "‖mean over pairs of (mean color of x' - mean color of x)‖; chance alone gives about √(3/N)",
        ),
    )
}  # fmt: skip
"""Metric => its specification, by family and in the order shown."""


METRIC_PATTERNS: tuple[MetricSpec, ...] = (
    MetricSpec(
        "label_agreement_{class_name}", "faithfulness", "label agreement: {class_name}",
        "Label agreement over the pairs with this target class.", True, "0 to 1", "1",
    ),
    MetricSpec(
        "attribute_agreement_{attribute}", "faithfulness", "attribute agreement: {attribute}",
        "Agreement with the target for this attribute.", True, "0 to 1", "1",
    ),
    MetricSpec(
        "valence_arousal_rmse_octant_{octant}", "faithfulness", "valence and arousal: RMSE, octant {octant}",
        "Root mean squared distance of target and predicted points over targets in this 45° octant.",
        False, "≥ 0", "0", "octant 1: angles from 0° at valence 1 to 45°, toward arousal 1",
    ),
    MetricSpec(
        "component_{component}_ccc", "faithfulness", "component {component}: CCC",
        "CCC of one whitened component; component 01 has the largest variance.", True, "-1 to 1", "1",
    ),
    MetricSpec(
        "sufficiency_at_{count}", "sufficiency", "sufficiency at {count}",
        "Validity when only the first {count} components are set to the target.", True, "0 to 1", "`validity`",
    ),
    MetricSpec(
        "component_{component}_monotonicity", "traversal", "component {component}: monotonicity",
        "Monotonicity of one component.", True, "-1 to 1", "1",
    ),
    MetricSpec(
        "component_{component}_slope", "traversal", "component {component}: slope",
        "Slope of one component.", True, "any", "1",
    ),
    MetricSpec(
        "component_{component}_linearity", "traversal", "component {component}: linearity",
        "Linearity of one component.", True, "0 to 1", "1",
    ),
    MetricSpec(
        "projection_{count}_distance", "traversal", "{count} components: distance",
        "Feature distance to a target that keeps the first {count} components of the source, in SD.",
        False, "≥ 0", "0",
        "mean over images of √(mean over dimensions of (c - c')²); other components at their mean",
    ),
    MetricSpec(
        "projection_{count}_ccc", "traversal", "{count} components: CCC",
        "CCC with a target that keeps the first {count} components of the source.", True, "-1 to 1", "1",
    ),
    MetricSpec(
        "projection_{count}_r2", "traversal", "{count} components: R²",
        "R² with a target that keeps the first {count} components of the source.", True, "≤ 1", "1",
    ),
    MetricSpec(
        "projection_{count}_centered_cosine", "traversal", "{count} components: cosine",
        "Cosine with a target that keeps the first {count} components of the source.", True, "-1 to 1", "1",
    ),
    MetricSpec(
        "component_{component}_nuisance_ratio", "factors", "component {component}: nuisance ratio",
        "Nuisance ratio of one component.", False, "≥ 0", "0",
    ),
    MetricSpec(
        "{factor}_ccc", "faithfulness", "{factor}: CCC",
        "Concordance of the target and the predicted factor.", True, "-1 to 1", "1",
    ),
    MetricSpec(
        "{factor}_pearson", "faithfulness", "{factor}: Pearson correlation",
        "Correlation of the target and the predicted factor.", True, "-1 to 1", "1",
    ),
    MetricSpec(
        "{factor}_rmse", "faithfulness", "{factor}: RMSE",
        "Root mean squared error of the predicted factor.", False, "≥ 0", "0",
    ),
    MetricSpec(
        "{factor}_sign_agreement", "faithfulness", "{factor}: sign agreement",
        "Share of pairs for which the target and the predicted factor have the same sign.", True, "0 to 1", "1",
    ),
)  # fmt: skip
"""Metrics whose name has a variable part; the first pattern that matches counts."""

COMPONENT_PREFIX = "component_{component}_"
"""Prefix of the metrics of a single component."""

COMPONENT_METRICS = tuple(
    spec.name.removeprefix(COMPONENT_PREFIX) for spec in METRIC_PATTERNS if spec.name.startswith(COMPONENT_PREFIX)
)
"""Metrics of single components, without the prefix."""

PLACEHOLDERS = {
    "class_name": ".+",
    "attribute": ".+",
    "octant": "[1-8]",
    "component": r"\d{2,}",
    "count": r"\d+",
    "factor": "[a-z_]+",
}
"""Placeholder => regular expression of its values."""

PREFIXES = {"second_dataset_": "second data set", "second_classifier_": "second classifier"}
"""Prefix of a metric name => what the label adds."""

SECOND_DATASET_PREFIX, SECOND_CLASSIFIER_PREFIX = PREFIXES

SELECTION_METRICS = tuple(name for name, spec in METRICS.items() if spec.selects_checkpoints)
"""Metrics that can select the best checkpoint; with the prefix `second_dataset_`, those of the second data set."""

DEFAULT_SELECTION_METRICS = {spec.default_for: name for name, spec in METRICS.items() if spec.default_for}
"""Condition kind => the metric that selects the best checkpoint by default."""

HPARAM_METRICS = tuple(name for name, spec in METRICS.items() if spec.hparams)
"""Metrics next to the settings in TensorBoard's table of runs."""

LEADERBOARD_METRICS = tuple(name for name, spec in METRICS.items() if spec.leaderboard)
"""Columns of the leaderboard."""


def find_metric(name: str) -> MetricSpec | None:
    """Return the specification of a metric name with any prefix or variable part; None if there is none."""
    if name in METRICS:
        return METRICS[name]
    for prefix, label in PREFIXES.items():
        base = find_metric(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if base is not None:
            return prefixed_spec(base, name, label)
    return next((spec for pattern in METRIC_PATTERNS if (spec := match_pattern(pattern, name))), None)


def prefixed_spec(base: MetricSpec, name: str, label: str) -> MetricSpec:
    """Return the specification of a metric with a prefix; it is in none of the short tables."""
    return MetricSpec(
        name, base.family, f"{base.label} ({label})", base.description, base.higher_is_better, base.value_range,
        base.ideal, base.formula, base.heading,
    )  # fmt: skip


def match_pattern(pattern: MetricSpec, name: str) -> MetricSpec | None:
    """Return the specification of a name that has the form of the pattern, with its values; None otherwise."""
    parts = re.split(r"{(\w+)}", pattern.name)
    expression = "".join(
        f"(?P<{part}>{PLACEHOLDERS[part]})" if index % 2 else re.escape(part) for index, part in enumerate(parts)
    )
    match = re.fullmatch(expression, name)
    if match is None:
        return None
    values = match.groupdict()
    return replace(
        pattern, name=name, label=pattern.label.format(**values), description=pattern.description.format(**values)
    )


def component_metric_name(component: int, metric: str) -> str:
    """Return the name of one of `COMPONENT_METRICS` for a component, whose number starts at 1."""
    return f"{COMPONENT_PREFIX.format(component=f'{component:02d}')}{metric}"


def is_component_metric(name: str) -> bool:
    """Return whether a metric is that of a single component."""
    return any(match_pattern(spec, name) for spec in METRIC_PATTERNS if spec.name.startswith(COMPONENT_PREFIX))


def metric_label(name: object) -> str:
    """Return the label of a metric; the name itself with spaces if it has no specification."""
    spec = find_metric(str(name))
    return spec.label if spec else str(name).replace("_", " ")


def higher_is_better(name: str) -> bool:
    """Return whether the largest value of a selection metric is the best.

    Raises KeyError if the metric has no direction.
    """
    spec = find_metric(name)
    if spec is None or spec.higher_is_better is None:
        raise KeyError(name)
    return spec.higher_is_better
