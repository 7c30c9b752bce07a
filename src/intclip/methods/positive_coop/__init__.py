"""PositiveCoOp and NegativeCoOp (WACV 2025)."""
