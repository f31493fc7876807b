"""Types and encodings of what hotnic's roles exchange.

This package takes no decisions and imports nothing of ``services``.

* :mod:`schemas.stages` is the table of an operation's stages: start here.
* :mod:`schemas.bus` has the events, one per stage, and the hot-plug status.
* :mod:`schemas.kubernetes` has the objects and their annotations, and the bodies of the aggregated API.
* :mod:`schemas.inputs` decodes what comes from outside, and bounds and counts it.
* :mod:`schemas.names` derives the names of links, and :mod:`schemas.cni` and :mod:`schemas.multus` are read on nodes.
* ``cri`` and ``podresources`` are gRPC stubs, and ``generate`` writes ``generated``.
"""
