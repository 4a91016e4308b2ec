"""An evaluation's sentences say what its numbers support, and no more."""

from dataclasses import replace

import pytest

from featgan.evaluation.conclusions import remarks
from featgan.evaluation.edit_metrics import Family
from featgan.evaluation.results import Findings
from featgan.evaluation.subgroups import RegionFamily
from featgan.metrics.bootstrap import Measure


def around(value: float, width: float = 0.02, count: int = 500) -> Measure:
    return Measure(value, value - width, value + width, count)


def family(**columns: dict[str, float]) -> Family:
    return {name: {measure: around(value) for measure, value in table.items()} for name, table in columns.items()}


def said(findings: Findings, about: str) -> list[tuple[str, str]]:
    return [(remark.verdict, remark.text) for remark in remarks(findings) if remark.about == about]


def faithful(shift: float, shuffled: float, mean: float) -> list[tuple[str, str]]:
    table = family(
        generator={"shift_aggregate": shift},
        shuffled_condition={"shift_aggregate": shuffled},
        mean_vector={"shift_aggregate": mean},
    )
    return said(Findings({"faithfulness": table}), "faithfulness")


def test_a_shift_is_judged_beside_its_controls() -> None:
    assert faithful(0.1, 0.0, 0.5) == [("limits", "The edits hardly reach what was asked: relative shift 0.10.")]
    assert faithful(0.35, 0.34, 0.5)[0][1].startswith("The request is hardly heard")
    assert faithful(0.48, 0.3, 0.5)[0][1].startswith("The edits come no nearer to the request than the mean vector")
    verdict, text = faithful(0.8, 0.3, 0.5)[0]
    assert verdict == "supports" and "relative shift 0.80, of edits to another request 0.30" in text


def test_retrieval_at_chance_is_called_so() -> None:
    table = {"retrieval_top1": Measure(0.002, 0.0, 0.005, 500), "retrieval_gallery": around(1000, 0)}
    found = said(Findings({"faithfulness": {"generator": table}}), "faithfulness")
    assert found == [
        ("limits", "Retrieval is at chance (top 1 0.002 of 1000): nothing particular of the request is left.")
    ]
    table["retrieval_top1"] = Measure(0.02, 0.01, 0.03, 500)
    assert said(Findings({"faithfulness": {"generator": table}}), "faithfulness") == []


def region(name: str, count: int = 100, **columns: dict[str, float]) -> RegionFamily:
    tables = {
        column: {measure: around(value, 0.1, count) for measure, value in table.items()}
        for column, table in columns.items()
    }
    return RegionFamily("class", name, count, tables)


def test_alike_classes_share_a_sentence_and_what_no_data_reach_is_no_failure() -> None:
    regions = [
        region("happy", generator={"flip_success": 0.9}, nearest_real={"flip_success": 0.9}),
        region("sad", generator={"flip_success": 0.2}, nearest_real={"flip_success": 0.9}),
        region("fear", generator={"flip_success": 0.3}, nearest_real={"flip_success": 0.8}),
        region("anger", generator={"flip_success": 0.1}, nearest_real={"flip_success": 0.2}),
        region("contempt", 7, generator={"flip_success": 0.0}, nearest_real={"flip_success": 0.9}),
    ]
    found = said(Findings({"faithfulness": {}}, regions=regions), "faithfulness")
    assert found == [
        ("unknown", "Too few pairs to say more of the classes contempt (7)."),
        ("limits", "Classes that are hardly reached where another was before: sad (0.20), fear (0.30)."),
    ]


def test_a_tint_that_real_images_have_as_well_is_none_of_the_boxs_making() -> None:
    regions = [
        region("disgust", generator={"tint": 1.4}, nearest_real={"tint": 0.2}),
        region("sad", generator={"tint": 1.0}, nearest_real={"tint": 1.1}),
        region("fear", generator={"tint": 0.3}, nearest_real={"tint": 0.0}),
    ]
    assert said(Findings({"faithfulness": {}}, regions=regions), "preservation") == [
        (
            "limits",
            "The box answers to colour as a real image would not: edits towards class disgust (1.4 deviations, real "
            "images 0.2) get a tint.",
        )
    ]


@pytest.mark.parametrize(
    ("witness", "before", "real", "verdict", "begins"),
    [
        (0.89, 0.07, 0.9, "supports", "The witness sees the change: it sees the label asked for in 0.89 of the pairs"),
        (0.5, 0.07, 0.9, "limits", "The witness sees less of the change"),
        (0.08, 0.07, 0.9, "limits", "The witness sees no change"),
        (0.3, 0.07, 0.3, "unknown", "The witness seldom agrees with the box even on real images"),
    ],
)
def test_a_witness_confirms_or_not(witness: float, before: float, real: float, verdict: str, begins: str) -> None:
    generator = {"witness_agreement": witness, "box_agreement": 0.92, "witness_gap": 0.92 - witness}
    controls = {"ceiling_real": {"witness_agreement": real}, "identity_copy": {"witness_agreement": before}}
    found = said(Findings({"witness": family(generator=generator, **controls)}), "witness")
    assert [(each, text[: len(begins)]) for each, text in found] == [(verdict, begins)]


def test_without_a_witness_it_says_what_is_not_known() -> None:
    assert said(Findings({"traversal": {}}), "witness")[0][0] == "unknown"


def test_components_are_grouped_by_what_is_seen_of_them() -> None:
    generator = {
        "component_01_slope": 0.6, "component_01_monotonicity": 0.98, "component_02_slope": 0.02,
        "component_02_monotonicity": 0.5, "component_03_slope": 0.4, "component_03_monotonicity": 0.95,
        "diagonal_dominance": 0.4,
    }  # fmt: skip
    real = {"component_02_slope": 0.05, "diagonal_dominance": 0.7}
    findings = Findings(
        {"traversal": family(generator=generator, nearest_real=real)}, crosstalk=[[0.6, 0, 0], [0, 0, 0], [0, 0, 0.4]]
    )
    assert said(findings, "traversal") == [
        ("limits", "Not visible to the box in the pixels: component 2 (slope 0.02)."),
        ("unknown", "No real images move them alone either, so the data cannot show them: 2 (0.05)."),
        ("supports", "Followed evenly: components 1, 3, slope 0.40 to 0.60."),
        (
            "limits",
            "Sliders move other components as well: 0.40 of the change lies in the component asked for, "
            "0.70 in real images.",
        ),
    ]


def test_fine_and_faint_edits_are_not_called_visible() -> None:
    def about(size: float, coarse: float) -> list[str]:
        own = {"edit_l1": size, "asked_edit_coarse_share": coarse}
        found = said(Findings({"preservation": family(generator=own, ceiling_jpeg={"edit_l1": 0.02})}), "preservation")
        return [text.split(":")[0] for _, text in found]

    assert about(0.2, 0.8) == ["The change is coarse enough to be seen"]
    assert about(0.2, 0.2) == ["Much of the change is fine texture, which a person may not see"]
    assert about(0.01, 0.8) == ["The edits are hardly larger than what JPEG at quality 75 changes"]


def test_a_tint_is_no_coarse_edit() -> None:
    own = {"edit_l1": 0.2, "asked_edit_coarse_share": 0.9, "asked_edit_constant_share": 0.7}
    (found,) = said(Findings({"preservation": family(generator=own, ceiling_jpeg={"edit_l1": 0.02})}), "preservation")
    assert found[0] == "limits" and found[1].startswith("Most of the change is one tint of the whole picture: 0.70")


@pytest.mark.parametrize(
    ("kept", "verdict", "begins"),
    [
        (0.03, "supports", "What is not asked to change is kept: by 0.030 of 2"),
        (0.08, "limits", "Repainting by itself changes the picture, so compare edits with the reconstruction: "),
        (0.30, "limits", "The generator does not keep its source (self-reconstruction 0.30)"),
    ],
)
def test_what_repainting_changes_is_judged_beside_jpeg(kept: float, verdict: str, begins: str) -> None:
    table = family(generator={"self_l1": kept}, ceiling_jpeg={"edit_l1": 0.025})
    (found,) = said(Findings({"preservation": table}), "preservation")
    assert found[0] == verdict and found[1].startswith(begins)


@pytest.mark.parametrize(
    ("ratio", "width", "verdict"), [(0.1, 0.02, "supports"), (0.2, 0.02, "limits"), (0.15, 0.1, "unknown")]
)
def test_nuisance_is_judged_by_its_interval(ratio: float, width: float, verdict: str) -> None:
    (found,) = said(Findings({"factors": {"generator": {"factor_nuisance_ratio": around(ratio, width)}}}), "factors")
    assert found[0] == verdict


def test_the_space_that_took_no_part_in_training_speaks_first() -> None:
    def about(**spaces: tuple[float, float]) -> tuple[str, str]:
        own = {}
        for prefix, (frechet, kid) in spaces.items():
            start = "" if prefix == "box" else f"{prefix}_"
            own |= {f"{start}frechet_edited": frechet, f"{start}frechet_real_floor": 1.0}
            own |= {f"{start}kid_edited": kid, f"{start}kid_real_floor": 0.0}
        (found,) = said(Findings({"realism": family(generator=own)}), "realism")
        return found

    assert about(box=(1.2, 0.0), witness=(9.0, 0.8))[0] == "limits"
    assert about(box=(9.0, 0.8), witness=(1.2, 0.0))[0] == "supports"
    verdict, text = about(witness=(2.4, 0.0))
    assert verdict == "limits", "further than real images from each other, for certain"
    verdict, text = about(box=(1.2, 0.0))
    assert verdict == "unknown" and text.endswith("in the box's own space, which took part in training.")


def test_a_generator_that_forgets_its_source_is_named() -> None:
    assert said(Findings({"diversity": family(generator={"diversity_ratio": 0.1})}), "diversity") == [
        ("limits", "Asked for the same, different sources become one picture: 0.10 of the sources' own distance.")
    ]
    assert said(Findings({"diversity": family(generator={"diversity_ratio": 0.9})}), "diversity") == []


def test_a_wide_interval_of_many_images_supports_nothing_either() -> None:
    own = {"frechet_edited": around(0.8, 1.8), "frechet_real_floor": around(0.5, 1.4)}
    own |= {"kid_edited": around(0.0, 0.2), "kid_real_floor": around(0.0, 0.2)}
    many = {f"witness_{name}": replace(found, count=628) for name, found in own.items()}
    (found,) = said(Findings({"realism": {"generator": many}}), "realism")
    assert found[0] == "unknown" and "is too wide" in found[1]


def test_a_distance_that_could_be_chance_supports_nothing() -> None:
    wide = {"frechet_edited": around(6.0, 5.0), "frechet_real_floor": around(1.8, 2.0)}
    own = {f"witness_{name}": found for name, found in wide.items()}
    own |= {"witness_kid_edited": around(0.1, 0.2), "witness_kid_real_floor": around(0.0, 0.2)}
    (found,) = said(Findings({"realism": {"generator": own}}), "realism")
    assert found[0] == "unknown" and "too few to tell" in found[1]
