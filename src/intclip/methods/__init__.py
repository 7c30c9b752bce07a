"""Methods: one folder each, over shared parts, behind one contract and one registry."""
