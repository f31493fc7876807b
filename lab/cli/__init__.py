"""The commands `hotnic lab …`.

`lab.py` parses the command line, `commands.py` has one function for each verb. hotnic's command line finds `lab.py`
by the entry point of the distribution `hotnic-lab`.
"""
