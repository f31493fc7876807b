"""HTTP over TCP, TLS and unix sockets: one way to serve (:mod:`~services.common.http.server`) and one to call."""
