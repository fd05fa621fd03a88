"""Search over HTTP: the Ray Serve application, its API, and the client with the methods of the index.

`service.serve` starts the service, `client.connect` asks it or an index in this process; the client needs
neither ray nor torch nor faiss for a served index, so nothing is imported here.
"""
