"""The report's first sentences: what the classifier tells, what can be concluded from the pictures, and what cannot."""

from collections.abc import Sequence

from markupsafe import Markup

from featgan.report.analysis.class_edits import Tiles
from featgan.report.analysis.class_reliability import Evidence
from featgan.report.analysis.component_ranking import Component, Ranking
from featgan.report.analysis.predictions import Answer
from featgan.report.analysis.visibility import TINT
from featgan.report.run_files import Evaluation, is_number, mapping

MOST_CONCLUSIONS = 2
MOST_NAMED = 2
MOSTLY = 0.5
"""Share of the pictures from which an answer counts as shown."""
STRAYS = 0.5
"""Cross-talk from which a component cannot be said to move alone."""
NEARLY_ALL = 0.95

DOUBTS = {
    "person": "the classifier sees a change, a person does not, so nothing can be said about its look",
    "classifier": "the pictures change, but the classifier sees little of the change that was asked for",
    "both": "the generator does not show it, so nothing can be said about it",
}
"""Who does not see a component move => what follows from that."""

TOLD = ("faithfulness", "preservation", "realism")
"""Families whose first limit is told in the opening."""

WITNESSED = ("witness_agreement", "box_agreement")
"""Measures: how often a second box, and the box itself, see the label asked for."""

SHORT_DOUBTS = {"person": "too faint to see", "classifier": "not seen by the classifier", "both": "not shown"}


def percent(share: float) -> str:
    """`38 %`; `under 1 %` for what would be shown as none."""
    return "under 1\N{NO-BREAK SPACE}%" if 0 < share < 0.005 else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; what is Markup stays so."""
    if len(parts) < 2:
        return parts[0] if parts else ""
    joiner = Markup(", ") if isinstance(parts[0], Markup) else ", "
    return joiner.join(parts[:-1]) + " and " + parts[-1]


def conclude(ranking: Ranking) -> list[Markup]:
    """What the components that matter show, as far as a person and the classifier both see them move."""
    shown = [component for component in ranking.components if component.counts and component.is_shown]
    if not shown:
        return [Markup("No component that matters to the answer can be seen in these pictures.")]
    of_what = "of the variation in its answer" if ranking.is_whole else "of what these components change in its answer"
    named = [of_what, *[""] * len(shown)]
    return [describe(component, what) for component, what in zip(shown[:MOST_CONCLUSIONS], named, strict=False)]


def reach(tiles: Tiles | None, evidence: Evidence | None = None) -> list[Markup]:
    """The answers that most of the pictures get when they are asked for, and those that are asked for by colour."""
    unsure = {*evidence.unconfirmed, *evidence.unjudged} if evidence else set()
    shares = tiles.shares() if tiles else {}
    names = [name for name, share in shares.items() if share >= MOSTLY and name not in unsure]
    text = "Moved towards {}, most of the pictures with another answer get that one: the tiles show what it takes."
    said = [Markup(text).format(emphasised(names))] if names else []
    tinted = tiles.tinted() if tiles else {}
    if tinted:
        alike = {tint: [name for name in tinted if tinted[name] == tint] for tint in tinted.values()}
        parts = [Markup("{} towards {}").format(tint, emphasised(names)) for tint, names in alike.items()]
        text = "The whole picture gets {}: it may tell these by colour and light, not by forms."
        said.append(Markup(text).format(listed(parts)))
    return said


def miss(tiles: Tiles | None, answer: Answer | None) -> list[Markup]:
    """The answers that none of the pictures gets, and those that cannot be asked for."""
    if tiles is None or answer is None:
        return []
    names = [name for name, share in tiles.shares().items() if share == 0]
    text = "Moved towards {}, no picture with another answer gets that one: what it looks like is not shown."
    said = [Markup(text).format(emphasised(names))] if names else []
    never = [name for name in answer.names if name not in tiles.sweep.headings]
    if never and tiles.sweep.group == "class" and answer.kind == "expression":
        text = "It gives {} to hardly any training picture: what such answers look like is not shown."
        said.append(Markup(text).format(emphasised(never)))
    return said


def unconfirmed(evidence: Evidence | None) -> list[Markup]:
    """The answers that a second classifier does not see in the edits towards them, and those that it never sees."""
    if evidence is None:
        return []
    texts = {
        "A second classifier seldom sees {} in the edits towards {}: these may deceive this one alone.": (
            evidence.unconfirmed
        ),
        "A second classifier cannot judge {}: it seldom sees {} in real pictures either.": evidence.unjudged,
    }
    return [
        Markup(text).format(emphasised(names), "it" if len(names) == 1 else "them")
        for text, names in texts.items()
        if names
    ]


def describe(component: Component, of_what: str) -> Markup:
    """One component: its share of the answer, where that moves, and where the picture changes."""
    text = Markup('<a href="#{}">{}</a>').format(component.rendering.sweep.name, component.title)
    if component.matters is not None:
        text += " ".join(part for part in (" carries", percent(component.matters), of_what) if part)
        text += movement(*component.directions)
    how = "clearly" if component.change.grade == "clear" else "faintly"
    text += f"; it shows {how}, {component.change.place}"
    tint = component.change.tint
    if abs(tint) >= TINT:
        text += f", and the whole picture gets {'brighter' if tint > 0 else 'darker'}"
    return text + "."


def movement(up: Sequence[str], down: Sequence[str]) -> Markup:
    """`, from neutral to happy`, as far as it is known."""
    if up and down:
        return Markup(", from {} to {}").format(emphasised(down), emphasised(up))
    if up or down:
        return Markup(", {} {}").format("towards" if up else "away from", emphasised(up or down))
    return Markup("")


def emphasised(names: Sequence[str]) -> str:
    return listed([Markup("<em>{}</em>").format(name) for name in names])


def doubt(ranking: Ranking, evaluation: Evaluation | None = None) -> list[Markup]:
    """What cannot be concluded, and why."""
    said = [doubted(ranking.components, why) for why in dict.fromkeys(each.doubt for each in ranking.components)]
    covered = ranking.covered
    if covered is not None and covered < NEARLY_ALL:
        said.append(
            Markup("{} of the variation in its answer lies outside these components.").format(percent(1 - covered))
        )
    nearest = evaluation.controls.get("nearest_real", {}) if evaluation and ranking.measured_on is not None else {}
    own = mapping(nearest.get("diagonal_dominance")).get("value")
    said.append(strays(ranking.components, 1 - own if is_number(own) else None))
    return [text for text in said if text]


def doubted(components: Sequence[Component], why: str) -> Markup:
    """Components that matter and that the pictures do not show, for one reason."""
    names = [
        Markup("{} ({})").format(each.title, percent(each.matters)) if each.matters is not None else Markup(each.title)
        for each in components
        if why and each.doubt == why and each.counts
    ]
    return Markup("{}: {}.").format(listed(names), DOUBTS[why]) if names else Markup("")


def strays(components: Sequence[Component], real: float | None) -> Markup:
    """Components that bring others with them; `real` is the cross-talk of going to the nearest real pictures."""
    found = [each for each in components if each.is_shown and each.crosstalk is not None and each.crosstalk > STRAYS]
    if not found:
        return Markup("")
    numbers = listed([str(index + 1) for index in sorted(each.index for each in found)])
    who = f"Components {numbers}" if len(found) > MOST_NAMED else listed([each.title for each in found])
    word = "does not move alone" if len(found) == 1 else "do not move alone"
    why = "part of what changes may belong to another component"
    beside = "" if real is None else f"; between real pictures it is {real:.2f} on average"
    return Markup("{} {} (cross-talk above {}{}): {}.").format(who, word, STRAYS, beside, why)


def confirm(evaluation: Evaluation | None) -> list[Markup]:
    """What a second classifier, that took no part in training, says to the same edits, where it agrees."""
    return [witnessed(evaluation)] if evaluation is not None and verdict_of(evaluation) == "supports" else []


def question(evaluation: Evaluation | None, ranking: Ranking, num_pictures: int) -> list[Markup]:
    """That too little was measured, that no second classifier was asked, or that it does not agree."""
    if evaluation is None:
        text = "Nothing was measured beyond the {} pictures of this page: <code>featgan evaluate</code> does that."
        return [Markup(text).format(num_pictures)]
    said = []
    if ranking.measured_on is None:
        said.append(Markup("Slope and cross-talk are of the {} pictures of this page only.").format(num_pictures))
    if verdict_of(evaluation) == "limits":
        said.append(witnessed(evaluation))
    said += [Markup.escape(text) for text in limits(evaluation)]
    if verdict_of(evaluation) == "unknown":
        unknown = "Whether another classifier would see the same is not known: none was asked, or it could not tell."
        said.append(Markup(unknown))
    return said


def limits(evaluation: Evaluation) -> list[str]:
    """What the evaluation says against the pictures: requests that fail, a source that is not kept, edits unlike real.

    Whether they look real is said to be unknown, too. What it says against the components and about the witness is said
    here in other words.
    """
    told = [each for each in evaluation.remarks if (each.about, each.verdict) == ("realism", "unknown")]
    told += reversed([each for each in evaluation.remarks if each.verdict == "limits"])
    said = {each.about: each.text for each in told}
    return [said[name] for name in TOLD if name in said]


def verdict_of(evaluation: Evaluation) -> str:
    """What the evaluation concludes from its witness, where it had one."""
    found = [remark.verdict for remark in evaluation.remarks if remark.about == "witness"]
    known = all(share_of(evaluation, name) is not None for name in WITNESSED)
    return found[0] if found and known else "unknown"


def witnessed(evaluation: Evaluation) -> Markup:
    """How often either classifier sees the label that was asked for."""
    other, own = (share_of(evaluation, name) for name in WITNESSED)
    agrees = "agrees" if verdict_of(evaluation) == "supports" else "does not agree"
    return Markup(
        "A second classifier, which took no part in training, {}: where another answer is asked for, it sees that "
        "in {} of the edited pictures, this one in {}."
    ).format(agrees, percent(other or 0.0), percent(own or 0.0))


def share_of(evaluation: Evaluation, name: str) -> float | None:
    value = mapping(evaluation.measures.get(name)).get("value")
    return value if is_number(value) else None


def introduce(answer: Answer | None, num_features: int | None, num_components: int | None, names_follow: bool) -> str:
    """What the classifier does, and what a component is, for someone who has never heard of either."""
    told = f"This classifier {answer.what(not names_follow)}. It" if answer and answer.names else "This classifier"
    numbers = f"{num_features} numbers" if num_features else "numbers"
    ways = f"{num_components}" if num_components else "a few"
    return (
        f"{told} turns a picture into {numbers} and answers by these alone. Over many pictures they vary in {ways} "
        "independent ways, the components."
    )
