"""Does a second black box, which took no part in training, see the same change as the first?

Everything is counted on the pairs whose decision is asked to change: on the others a copy agrees as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from featgan.metrics.bootstrap import Booleans, Floats, Integers, Measure, mean_measure
from featgan.metrics.faithfulness import centred_cosine


@dataclass(frozen=True)
class Seen:
    """One box's outputs [N, O] for the sources and for what stands for their edits, and the names of the outputs."""

    before: Floats
    after: Floats
    names: Sequence[str]

    def decisions(self, outputs: Floats, codes: Sequence[str]) -> Integers:
        """The largest output's place in `codes`, a list that holds all names: [N, O] => [N]."""
        places = np.array([codes.index(name) for name in self.names], dtype=np.int64)
        return np.take(places, outputs.argmax(1))

    def change(self, shared: Sequence[str]) -> Floats:
        """Change of the probabilities of the shared classes: [N, S]."""
        columns = [list(self.names).index(name) for name in shared]
        return np.asarray(softmax(self.after[:, columns], 1) - softmax(self.before[:, columns], 1))


def agreement_table(box: Seen, witness: Seen, wanted: Floats, asked: Booleans, seed: int = 0) -> dict[str, Measure]:
    """Label agreement of both boxes with the request, of the boxes with each other, and on what changed.

    `wanted` [N, O] are the first box's outputs for the images whose features were asked for, `asked` [N] the pairs that
    count. Classes are matched by name; empty where the boxes share fewer than two.
    """
    shared = [name for name in box.names if name in witness.names]
    if len(shared) < 2:
        return {}
    codes = list(dict.fromkeys([*box.names, *witness.names]))
    labels = box.decisions(wanted, codes)
    # What the witness has no word for it cannot agree with: such requests say nothing about the edit.
    kept = asked & np.isin(labels, [codes.index(name) for name in shared])
    labels = labels[kept]
    own = [box.decisions(outputs, codes)[kept] for outputs in (box.before, box.after)]
    others = [witness.decisions(outputs, codes)[kept] for outputs in (witness.before, witness.after)]
    obeyed, confirmed = (own[1] == labels).astype(np.float64), (others[1] == labels).astype(np.float64)
    cosines = centred_cosine(box.change(shared)[kept], witness.change(shared)[kept])
    return {
        "box_agreement": mean_measure(obeyed, seed),
        "witness_agreement": mean_measure(confirmed, seed),
        "witness_gap": mean_measure(obeyed - confirmed, seed),
        "boxes_agree": mean_measure(own[1] == others[1], seed),
        "change_agreement": mean_measure(same_change(*own, *others), seed),
        "change_cosine": mean_measure(cosines, seed),
    }


def same_change(before: Integers, after: Integers, other_before: Integers, other_after: Integers) -> Floats:
    """1 where the other box's decision became the one that the first box's became, else 0: four [N] => [N].

    Not a number where the first box's decision did not change, or the other had it from the start.
    """
    changed = (before != after) & (other_before != after)
    return np.where(changed, (other_after == after).astype(np.float64), np.nan)


def confirmations(witness: Seen, names: Sequence[str], wanted: Floats, asked: Booleans) -> Floats:
    """1 where the witness sees the label asked for, else 0; not a number where no change was asked: => [N]."""
    codes = list(dict.fromkeys([*names, *witness.names]))
    labels = Seen(wanted, wanted, names).decisions(wanted, codes)
    return np.where(asked, (witness.decisions(witness.after, codes) == labels).astype(np.float64), np.nan)
