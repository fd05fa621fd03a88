"""Serve an index over HTTP as a job that runs until it is stopped: `python jobs/serve.py --config FILE`."""

import sys

from distindex.job import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("serve"))
