"""Measured block shapes that ship with the library: architecture -> op -> key -> fields.

Only what beats the heuristic by more than a measurement's noise belongs here, each entry with the
device, the shape and both figures beside it: they are in the user's file, which
``effnet-fast tune`` writes. An architecture that is not named uses the heuristics alone.
"""

TABLE: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
