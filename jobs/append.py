"""Add a code set to an index as a job: `python jobs/append.py --config FILE`."""

import sys

from distindex.job import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("append"))
