"""What a message on the bus and an entry of the key-value bucket contain, and the names under which they are found.

An event changes nothing: the objects of :mod:`schemas.kubernetes` hold the truth. Start with
:mod:`schemas.bus.events`, one struct per stage.
"""
