"""`python -m launch.claimed_evaluation RUN STEP SUITE TOKEN`: an evaluation whose checkpoint was claimed beforehand."""

import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featgan.errors import UserError
from featgan.run.evaluation_claims import Claim
from featgan.run.schedule import with_judges


def evaluate_claimed(claim: Claim, options: Mapping[str, Any], scheduled: bool) -> None:
    """Evaluate what was claimed, and give the claim back; when another has it by now, leave it to that.

    What breaks is raised. A scheduled evaluation counts it and gives the claim back, for the watch to try again; one
    that a person submitted keeps it, since the scheduler does. So does a job that a signal ends: it is queued again.
    """
    from featgan.evaluation.evaluate import evaluate_run

    if not claim.adopt():
        print(f"featgan: {claim.run}: step {claim.step} ({claim.suite}) is another's by now", file=sys.stderr)
        return
    try:
        with claim.hold.kept():
            evaluate_run(claim.run, claim.step, claim.suite, **with_judges(claim.run, options))
    except Exception as error:
        if scheduled:
            claim.count_failure(traceback.format_exc(limit=-3))
        if scheduled or isinstance(error, UserError):
            claim.give_back()
        raise
    claim.failures.unlink(missing_ok=True)
    claim.give_back()


if __name__ == "__main__":
    evaluate_claimed(Claim(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5]), {}, scheduled=True)
