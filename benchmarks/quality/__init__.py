"""The quality protocol: every method on every data set, with the same labels, queries and figures."""
