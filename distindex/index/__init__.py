"""Shards of distinct codes, versions of an index, and search over them. Only this room imports faiss.

`index.Index` opens and searches, `matches.Matches` holds answers (and needs no faiss), `manifest`
describes versions, `shard` is the stored unit, `flat` the exact search structure inside it.
"""
