"""Evaluate a checkpoint that the watch has claimed.

`python -m launch.claimed_evaluation RUN STEP SUITE TOKEN PARENT [--trust-callables]`, where PARENT is the
process ID of the watch: if it is killed, the evaluation ends too.
"""

import logging
import sys
import traceback
from pathlib import Path

from featgan.cli.log_handler import install_log_handler
from featgan.errors import UserError
from featgan.run.evaluation_claims import EvaluationClaim
from featgan.run.evaluation_options import EvaluationOptions
from featgan.run.paths import load_run_config
from featgan.system.worker_processes import end_with_parent
from launch.watch_trust import trust_own_run

logger = logging.getLogger("launch.claimed_evaluation")  # __name__ is "__main__" in the process that the watch starts


def evaluate_claimed(claim: EvaluationClaim, options: EvaluationOptions, scheduled: bool) -> None:
    """Evaluate a claimed checkpoint and release the claim. Does nothing if another process has taken over the claim.

    Any exception is raised again. A scheduled evaluation records it as a failure and releases the claim, so that the
    watch retries the checkpoint. An evaluation that a user submitted keeps the claim, because the scheduler restarts
    the job; the same holds for a job that a signal ends.
    """
    from featgan.evaluation.evaluate import evaluate_with_defaults

    if not claim.take_over():
        logger.warning(f"{claim.run}: step {claim.step} ({claim.suite}) has since been claimed by another process")
        return
    try:
        with claim.lease.keep_alive():
            evaluate_with_defaults(claim.run, claim.step, claim.suite, options)
    except Exception as error:
        if scheduled:
            claim.record_failure(traceback.format_exc(limit=-3))
        if scheduled or isinstance(error, UserError):
            claim.release()
        raise
    claim.failures_path.unlink(missing_ok=True)
    claim.release()


if __name__ == "__main__":
    install_log_handler()
    end_with_parent(int(sys.argv[5]))
    claim = EvaluationClaim(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5])
    trusted = trust_own_run(claim.run, claim.step, load_run_config(claim.run), "--trust-callables" in sys.argv[6:])
    evaluate_claimed(claim, EvaluationOptions(trusted=trusted), scheduled=True)
