"""Methods: one folder each, with shared parts, a common contract and a registry."""
