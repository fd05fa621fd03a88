"""`since`: which files of a corpus have been encoded into earlier code sets, and which have come since."""

from __future__ import annotations

import dataclasses

from distindex import codeset
from distindex.codeset import CodeSet, InputFile
from distindex.config import EncodeConfig
from distindex.corpus.dataset import Corpus
from distindex.encoding.tasks import inputs_of
from distindex.errors import ConflictError, NotFoundError
from distindex.hashing.hasher import Hasher
from distindex.storage import Storage


@dataclasses.dataclass(frozen=True)
class Since:
    """What the earlier code sets cover, and the rest of the corpus.

    Attributes:
        inputs: the corpus files that they were made of, by URI.
        corpus: the corpus without them.
    """

    inputs: tuple[InputFile, ...]
    corpus: Corpus


def split_corpus(config: EncodeConfig, corpus: Corpus, hasher: Hasher) -> Since:
    """Take the files of earlier code sets out of a corpus; all of it is left where `config.since` is not set.

    Raises:
        NotFoundError: there is no code set at `since`.
        ConflictError: one was made by another hasher, or of files that have changed or gone since.
    """
    if config.since is None:
        return Since((), corpus)
    covered: dict[str, InputFile] = {}
    for code_set in _code_sets(config.since, config):
        manifest = code_set.manifest
        if manifest.hasher.fingerprint != hasher.fingerprint:
            raise ConflictError(
                f"{code_set.storage.uri}: was encoded by another hasher ({manifest.hasher.uri}, fingerprint "
                f"{manifest.hasher.fingerprint}); encode the whole corpus anew, without since"
            )
        covered.update({file.uri: file for file in (*manifest.earlier, *manifest.inputs)})
    now = {file.uri: file for file in inputs_of(corpus)}
    gone = sorted(covered.keys() - now.keys())
    changed = sorted(uri for uri in covered.keys() & now.keys() if covered[uri] != now[uri])
    for uris, what in ((changed, "changed"), (gone, "gone from the corpus")):
        if uris:
            raise ConflictError(
                f"{uris[0]}: encoded before, but {what} since ({len(uris)} such file(s)); codes in {config.since} no "
                "longer stand for the corpus: restore the files, or encode the whole corpus anew, without since"
            )
    left = tuple(file for file in corpus.files if file.uri not in covered)
    return Since(tuple(covered[uri] for uri in sorted(covered)), Corpus(corpus.config, left, corpus.schema))


def _code_sets(uri: str, config: EncodeConfig) -> list[CodeSet]:
    """The code set at a URI, or those directly below it; not the one that is to be made."""
    options = config.corpus.storage_options
    storage, output = Storage(uri, options), Storage(config.output, options)
    found = [storage] if storage.exists(codeset.MANIFEST) else [storage.child(name) for name in storage.names()]
    sets = [
        CodeSet.open(each.uri, each.options)
        for each in found
        if each.full_path() != output.full_path() and each.exists(codeset.MANIFEST)
    ]
    if not sets:
        raise NotFoundError(
            f"since: {uri} is no code set and has none directly below it; the first time, leave since out"
        )
    return sets
