"""`distindex label serve`: a page on which people label. One process, without Ray; every vote is a file at once."""
