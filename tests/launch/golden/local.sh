# In the background, 2 processes:
export PYTHONPATH=/runs/one/jobs/001-train/code.zip${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
PYTHON -u -m submitit.core._submit /runs/one/jobs/001-train
