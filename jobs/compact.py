"""Compact an index as a job: `python jobs/compact.py --config FILE`."""

import sys

from distindex.job import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("compact"))
