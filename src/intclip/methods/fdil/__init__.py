"""The parts of FDIL (2026)."""
