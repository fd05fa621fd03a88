"""Measure retrieval with known labels as a job: `python jobs/evaluate.py --config FILE`."""

import sys

from distindex.job import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("evaluate"))
