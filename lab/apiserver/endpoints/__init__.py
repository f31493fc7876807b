"""The HTTP side: decoding a request, selecting its verb and encoding the response.

Start with `server.py`.
"""
