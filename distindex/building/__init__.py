"""Code set in, index version out, with Ray over index/."""
