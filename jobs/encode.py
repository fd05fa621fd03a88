"""Encode a corpus into a code set as a job: `python jobs/encode.py --config FILE`."""

import sys

from distindex.job import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("encode"))
