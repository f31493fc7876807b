"""Describes the aggregated API by OpenAPI, version 2 and 3. Start with :mod:`services.api.openapi.operations`."""
