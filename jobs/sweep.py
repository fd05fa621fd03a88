"""Search for the best settings of training as a job: `python jobs/sweep.py --config FILE`."""

import sys

from distindex.job import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("sweep"))
