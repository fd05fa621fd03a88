"""Train a hasher as a job: `python jobs/train.py --config FILE`."""

import sys

from distindex.job import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("train"))
