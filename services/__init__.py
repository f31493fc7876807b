"""The processes of hotnic and what they share. Start with :mod:`services.common`."""
