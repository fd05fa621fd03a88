"""Rounds of choosing, labeling and training; puts labeling, training and evaluation together."""
