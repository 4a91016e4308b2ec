# Sourced by a job script: check a restarted job, and requeue a job that has failed. POSIX sh.
#
# `python -m launch.requeue` decides and prints its decision. scontrol runs here, in the batch shell, because Python may
# run in a container that does not contain SLURM's commands. The job script defines $featgan_job (the job folder),
# featgan_python (the Python of the job) and, if srun starts the container, featgan_step (the same, started by srun).

# Print the decision of `python -m launch.requeue "$@"`; print nothing if Python cannot run.
featgan_decide() {
  if command -v featgan_step > /dev/null && ! featgan_python -c 'import launch.requeue' 2> /dev/null; then
    featgan_step -m launch.requeue "$@" | tail -n 1
  else
    featgan_python -m launch.requeue "$@" | tail -n 1
  fi
}

# Print the decision if Python cannot run. The number of restarts is limited, but progress is not considered.
featgan_decide_without_python() {
  echo "warning: launch.requeue cannot run (see above); the job script decides" >&2
  state=$(cat "$featgan_job/state-${SLURM_RESTART_COUNT:-0}" 2> /dev/null)
  case $state in [0-9]*) code=$state ;; signaled) code=75 ;; esac
  max_restarts=${FEATGAN_MAX_FAILURES:-3}
  case $code:$state in 75:* | 129: | 130: | 138: | 140: | 143:) max_restarts=$((max_restarts * 10)) ;; esac
  case $featgan_state in
    *JobState=CANCELLED*) echo leave ;;
    *) if [ "$code" != 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$max_restarts" ]; then echo requeue
       else featgan_write_verdict "exit code $code, and launch.requeue cannot run"; fi ;;
  esac
}

# Write the verdict and log it if Python cannot run.
featgan_write_verdict() {
  printf '%s: not restarted: %s; logs: %s; fix the cause, then submit the job again with the same command to resume\n' \
    "${featgan_job##*/}" "$1" "$featgan_job" | tee "$featgan_job/verdict.txt" >&2
}

# Run scontrol and print its output and errors. Retry while the controller does not respond: it may be restarting.
featgan_scontrol() {
  for delay in ${FEATGAN_RETRY_DELAYS-2 5 10 20} end; do
    text=$(scontrol "$@" 2>&1)
    result=$?
    case $text in
      *"Unable to contact"* | *"Socket timed out"* | *"Zero Bytes were transmitted"* | *"Connection refused"*)
        [ "$delay" = end ] || sleep "$delay" ;;
      *) break ;;
    esac
  done
  printf '%s\n' "$text"
  return "$result"
}

# Run at the end of the job script. The exit code of the script does not change, for jobs that depend on this one.
featgan_requeue() {
  code=$?
  trap - EXIT
  [ "$code" -ne 0 ] || exit 0
  featgan_state=$(featgan_scontrol show job "$SLURM_JOB_ID" --oneliner)
  decision=$(featgan_decide ended "$featgan_job" "$code" "$featgan_state")
  [ -n "$decision" ] || decision=$(featgan_decide_without_python)
  if [ "$decision" = requeue ]; then
    if ! reason=$(featgan_scontrol requeue "$SLURM_JOB_ID"); then
      featgan_decide rejected "$featgan_job" "$reason" > /dev/null
      [ -e "$featgan_job/verdict.txt" ] || featgan_write_verdict "SLURM cannot requeue the job ($(echo $reason))"
    fi
  fi
  exit "$code"
}

# A previous attempt may have ended without the function above, because its node failed.
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ "$(featgan_decide restart "$featgan_job")" = stop ]; then exit 2; fi
trap featgan_requeue EXIT
