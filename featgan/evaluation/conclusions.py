"""In words: what an evaluation's numbers can support, where they say no, and what they cannot tell."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeGuard

from featgan.evaluation.results import Findings
from featgan.evaluation.subgroups import RegionFamily
from featgan.metrics.bootstrap import Measure

FAINT = 0.1
"""Slope below which a component is not visible in pixels."""

FEW_PAIRS = 20
"""Pairs below which nothing is said about a region."""

FEW_IMAGES = 200
"""Images a side below which distances of distributions say little."""

KEPT = 2.0
"""Times what JPEG at quality 75 changes, up to which a source counts as kept."""

NUISANCE = 0.15
"""Share of the change of factors that mean something, up to which the others stay put."""

TINTED = 0.5
"""Deviations of real pictures' colours from which a tint is spoken of."""

Verdict = Literal["supports", "limits", "unknown"]


@dataclass(frozen=True)
class Remark:
    """A sentence: it supports what the pictures show, limits it, or says what is not known."""

    about: str
    """A family of measures."""
    verdict: Verdict
    text: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def remarks(findings: Findings) -> list[Remark]:
    """All sentences, family by family."""
    return [remark for rule in RULES for remark in rule(findings)]


def faithfulness_remarks(findings: Findings) -> Iterator[Remark]:
    """How far the edits go, beside what no heed of the request would reach."""
    if "faithfulness" not in findings.families:
        text = "Trained on labels: without a judge (--blackbox) only preservation is measured."
        yield Remark("faithfulness", "unknown", text)
    yield from decision_remarks(findings)
    shift = findings.flat.get("shift_aggregate")
    if not is_known(shift):
        return
    shuffled, mean = (findings.control(name).get("shift_aggregate") for name in ("shuffled_condition", "mean_vector"))
    if shift.value < 0.2:
        yield limit("faithfulness", f"The edits hardly reach what was asked: relative shift {shift.value:.2f}.")
    elif is_known(shuffled) and shift.low <= shuffled.high:
        beside = f"{shift.value:.2f} beside {shuffled.value:.2f} of edits to another request"
        yield limit("faithfulness", f"The request is hardly heard: relative shift {beside}.")
    elif is_known(mean) and shift.low <= mean.high:
        beside = f"{shift.value:.2f} beside {mean.value:.2f}"
        yield limit("faithfulness", f"The edits come no nearer to the request than the mean vector does: {beside}.")
    elif is_known(shuffled):
        beside = f"relative shift {shift.value:.2f}, of edits to another request {shuffled.value:.2f}"
        yield Remark("faithfulness", "supports", f"The edits follow the request: {beside}.")


def decision_remarks(findings: Findings) -> Iterator[Remark]:
    """Decisions no better than of a copy; requests that cannot be told from others."""
    copied, agreement = findings.control("identity_copy").get("label_agreement"), findings.flat.get("label_agreement")
    if is_known(copied) and is_known(agreement) and agreement.low <= copied.high:
        yield limit("faithfulness", "The box decides as asked no more often than for unchanged sources.")
    top, gallery = (findings.flat.get(f"retrieval_{name}") for name in ("top1", "gallery"))
    if is_known(top) and is_known(gallery) and top.low <= 1 / gallery.value:
        among = f"top 1 {top.value:.3f} of {gallery.value:.0f}"
        yield limit("faithfulness", f"Retrieval is at chance ({among}): nothing particular of the request is left.")


def region_remarks(findings: Findings) -> Iterator[Remark]:
    """Requests that averages hide: classes and octants hardly reached, far ends, too few pairs."""
    by = findings.regions_by
    few = [f"{region.name} ({region.count})" for region in by.get("class", ()) if region.count < FEW_PAIRS]
    if few:
        yield Remark("faithfulness", "unknown", f"Too few pairs to say more of the classes {listed(few)}.")
    weak = list(lagging(by.get("class", ()), "flip_success", 0.5))
    if weak:
        yield limit("faithfulness", f"Classes that are hardly reached where another was before: {listed(weak)}.")
    weak = list(lagging(by.get("octant", ()), "shift_aggregate", 0.3))
    if weak:
        yield limit("faithfulness", f"Octants that are hardly reached, by relative shift: {listed(weak)}.")
    ends = [region for region in by.get("component", ()) if region.name.startswith(("below", "above"))]
    weak = list(lagging(ends, "own_shift", 0.3))
    if weak:
        yield limit("faithfulness", f"Far ends that are hardly reached, by relative shift: {listed(weak)}.")


def lagging(regions: Iterable[RegionFamily], name: str, least: float) -> Iterator[str]:
    """Regions whose measure is below `least` for certain, though the nearest real images reach it."""
    for region in regions:
        own, real = (region.family.get(column, {}).get(name) for column in ("generator", "nearest_real"))
        out_of_reach = is_known(real) and real.high < least
        if is_known(own) and own.count >= FEW_PAIRS and own.high < least and not out_of_reach:
            by = f"{region.by} " if region.by.startswith("component") else ""
            yield f"{by}{region.name} ({own.value:.2f})"


def colour_remarks(findings: Findings) -> Iterator[Remark]:
    """Classes towards which every edit gets a tint that real images of such features do not have."""
    tinted = []
    for region in findings.regions_by.get("class", ()):
        own, real = region.family["generator"].get("tint"), tint_of_real(region)
        if is_known(own) and own.count >= FEW_PAIRS and own.low > max(real.high if is_known(real) else 0.0, TINTED):
            beside = f", real images {real.value:.1f}" if is_known(real) else ""
            tinted.append(f"{region.name} ({own.value:.1f} deviations{beside})")
    if tinted:
        word = "class" if len(tinted) == 1 else "classes"
        text = f"The box answers to colour as a real image would not: edits towards {word} {listed(tinted)} get a tint."
        yield limit("preservation", text)


def tint_of_real(region: RegionFamily) -> Measure | None:
    """Of the real images with the features, or the label, that was asked for."""
    tables = [region.family.get(column, {}) for column in ("nearest_real", "ceiling_real")]
    return next((table["tint"] for table in tables if "tint" in table), None)


def witness_remarks(findings: Findings) -> Iterator[Remark]:
    """Whether a box that took no part in training sees the change."""
    if "witness" not in findings.families:
        if "traversal" in findings.families:
            text = "No witness (--witness): whether a box that took no part in training sees the change is not known."
            yield Remark("witness", "unknown", text)
        return
    own, box, gap = (findings.flat.get(name) for name in ("witness_agreement", "box_agreement", "witness_gap"))
    real, before = (findings.control(name).get("witness_agreement") for name in ("ceiling_real", "identity_copy"))
    if not (is_known(own) and is_known(box) and is_known(gap) and is_known(real) and is_known(before)):
        yield Remark("witness", "unknown", "The witness tells other things than the box: only distances are compared.")
        return
    seen = (
        f"it sees the label asked for in {own.value:.2f} of the pairs, the first box in {box.value:.2f}; "
        f"before the edit in {before.value:.2f}, in real images in {real.value:.2f}"
    )
    if real.value < 0.5:
        yield Remark("witness", "unknown", f"The witness seldom agrees with the box even on real images: {seen}.")
    elif own.low <= before.high:
        yield limit("witness", f"The witness sees no change: {seen}.")
    elif gap.low > 0.1:
        yield limit("witness", f"The witness sees less of the change, so part of it deceives this one box: {seen}.")
    else:
        yield Remark("witness", "supports", f"The witness sees the change: {seen}.")


def traversal_remarks(findings: Findings) -> Iterator[Remark]:
    """Which sliders move, which are not visible in pixels, and whether they move others."""
    entries = findings.components
    faint = [entry for entry in entries if entry.get("slope", 1.0) < FAINT]
    if faint:
        said = listed([f"{entry['index'] + 1} (slope {entry['slope']:.2f})" for entry in faint])
        yield limit("traversal", f"Not visible to the box in the pixels: {plural('component', faint)} {said}.")
    yield from held_by_data(findings, [entry["index"] + 1 for entry in faint])
    even = [entry for entry in entries if entry.get("slope", 0.0) >= FAINT and entry.get("monotonicity", 0.0) >= 0.9]
    if even:
        slopes = [entry["slope"] for entry in even]
        span = f"{min(slopes):.2f}" if len(even) == 1 else f"{min(slopes):.2f} to {max(slopes):.2f}"
        named = listed([str(entry["index"] + 1) for entry in even])
        text = f"Followed evenly: {plural('component', even)} {named}, slope {span}."
        yield Remark("traversal", "supports", text)
    own, real = findings.flat.get("diagonal_dominance"), findings.control("nearest_real").get("diagonal_dominance")
    if is_known(own) and own.high < 0.6 and not (is_known(real) and real.value <= own.high):
        beside = f"{own.value:.2f} of the change lies in the component asked for"
        beside += f", {real.value:.2f} in real images" if is_known(real) else ""
        yield limit("traversal", f"Sliders move other components as well: {beside}.")


def held_by_data(findings: Findings, faint: Sequence[int]) -> Iterator[Remark]:
    """Faint components that real images do not move alone either."""
    table, still = findings.control("nearest_real"), []
    for number in faint:
        slope = table.get(f"component_{number:02d}_slope")
        if is_known(slope) and slope.value < FAINT:
            still.append(f"{number} ({slope.value:.2f})")
    if still:
        text = f"No real images move them alone either, so the data cannot show them: {listed(still)}."
        yield Remark("traversal", "unknown", text)


def preservation_remarks(findings: Findings) -> Iterator[Remark]:
    """Whether the source is kept, and whether a person can see the edit."""
    flat = findings.flat
    yield from source_remarks(findings)
    size, jpeg = flat.get("edit_l1"), findings.control("ceiling_jpeg").get("edit_l1")
    if is_known(size) and is_known(jpeg) and size.low <= jpeg.high:
        beside = f"{size.value:.3f} beside {jpeg.value:.3f}"
        yield limit("preservation", f"The edits are hardly larger than what JPEG at quality 75 changes: {beside}.")
    coarse, constant = (flat.get(f"asked_edit_{kind}_share") for kind in ("coarse", "constant"))
    if is_known(coarse):
        share = f"{coarse.value:.2f} of the edit's energy is coarse where another decision is asked"
        if is_known(constant) and constant.low > 0.5:
            tint = f"{constant.value:.2f} of the edit's energy"
            yield limit("preservation", f"Most of the change is one tint of the whole picture: {tint}.")
        elif coarse.high < 0.5:
            yield limit("preservation", f"Much of the change is fine texture, which a person may not see: {share}.")
        elif coarse.low > 0.5 and not (is_known(size) and is_known(jpeg) and size.low <= jpeg.high):
            yield Remark("preservation", "supports", f"The change is coarse enough to be seen: {share}.")


def source_remarks(findings: Findings) -> Iterator[Remark]:
    """How much of the source repainting alone changes, where nothing is asked to change."""
    kept, jpeg = findings.flat.get("self_l1"), findings.control("ceiling_jpeg").get("edit_l1")
    if not is_known(kept):
        return
    if kept.value > 0.2:
        yield limit(
            "preservation",
            f"The generator does not keep its source (self-reconstruction {kept.value:.2f}): "
            "faithfulness without preservation shows what fools the box, not what it looks at.",
        )
    elif is_known(jpeg):
        beside = f"by {kept.value:.3f} of 2 where nothing is asked, JPEG at quality 75 by {jpeg.value:.3f}"
        if kept.low > KEPT * jpeg.value:
            text = f"Repainting by itself changes the picture, so compare edits with the reconstruction: {beside}."
            yield limit("preservation", text)
        elif kept.high <= KEPT * jpeg.value:
            yield Remark("preservation", "supports", f"What is not asked to change is kept: {beside}.")


def realism_remarks(findings: Findings) -> Iterator[Remark]:
    """Whether edits lie where real images do, in the space that says most: Inception's, the witness's, or the box's."""
    spaces = {"inception_": "Inception's space", "witness_": "the witness's space", "": "the box's own space"}
    flat = findings.flat
    for prefix, space in spaces.items():
        edited, floor = flat.get(f"{prefix}frechet_edited"), flat.get(f"{prefix}frechet_real_floor")
        kernel, kernel_floor = flat.get(f"{prefix}kid_edited"), flat.get(f"{prefix}kid_real_floor")
        if not (is_known(edited) and is_known(floor) and is_known(kernel) and is_known(kernel_floor)):
            continue
        beside = f"Frechet {edited.value:.2f}, real to real {floor.value:.2f}, in {space}"
        beside += "" if prefix else ", which took part in training"
        far = edited.value > 2 * floor.value
        apart = kernel.low > kernel_floor.high or edited.low > floor.high
        if far and apart:
            yield limit("realism", f"The edits lie where real images do not: {beside}.")
        elif far or edited.count < FEW_IMAGES:
            few = f"{edited.count} images a side are too few to tell"
            yield Remark(
                "realism", "unknown", f"Whether edits lie where real images do is not known: {few} ({beside})."
            )
        elif edited.high - edited.low > 2 * floor.value:
            wide = f"{edited.low:.2f} to {edited.high:.2f} is too wide to tell"
            yield Remark(
                "realism", "unknown", f"Whether edits lie where real images do is not known: {wide} ({beside})."
            )
        elif prefix:
            yield Remark("realism", "supports", f"The edits lie near real images: {beside}.")
        else:
            yield Remark("realism", "unknown", f"The edits seem to lie near real images: {beside}.")
        return


def diversity_remarks(findings: Findings) -> Iterator[Remark]:
    """Whether the source is forgotten when a request is made."""
    ratio = findings.flat.get("diversity_ratio")
    if is_known(ratio) and ratio.high < 0.5:
        share = f"{ratio.value:.2f} of the sources' own distance"
        yield limit("diversity", f"Asked for the same, different sources become one picture: {share}.")


def factor_remarks(findings: Findings) -> Iterator[Remark]:
    """Whether what does not drive the expression stays put, on drawn faces."""
    ratio = findings.flat.get("factor_nuisance_ratio")
    if is_known(ratio):
        share = f"{ratio.value:.2f} of the change of the factors that mean something"
        if ratio.high <= NUISANCE:
            yield Remark("factors", "supports", f"Nuisance factors stay put: {share}.")
        elif ratio.low > NUISANCE:
            yield limit("factors", f"Nuisance factors move as well: {share}.")
        else:
            yield Remark("factors", "unknown", f"Whether nuisance factors stay put is too close to tell: {share}.")


RULES: tuple[Callable[[Findings], Iterator[Remark]], ...] = (
    faithfulness_remarks,
    region_remarks,
    witness_remarks,
    traversal_remarks,
    preservation_remarks,
    colour_remarks,
    realism_remarks,
    diversity_remarks,
    factor_remarks,
)


def limit(about: str, text: str) -> Remark:
    return Remark(about, "limits", text)


def is_known(measure: Measure | None) -> TypeGuard[Measure]:
    """Whether there is such a number."""
    return measure is not None and math.isfinite(measure.value)


def listed(parts: Sequence[str]) -> str:
    return ", ".join(parts)


def plural(word: str, counted: Sequence[object]) -> str:
    return word if len(counted) == 1 else f"{word}s"
