"""For developers: timing in pairs, tables of measured figures, and where a figure was measured."""
