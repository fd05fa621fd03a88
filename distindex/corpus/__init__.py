"""Parquet corpora: files, columns, ids, labels and features. Pure: no Ray, no torch, no faiss."""
