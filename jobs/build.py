"""Build a version of an index from a code set as a job: `python jobs/build.py --config FILE`."""

import sys

from distindex.job import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("build"))
