"""HTTP over TCP, TLS and unix sockets: :mod:`~services.common.http.server` and :mod:`~services.common.http.client`."""
