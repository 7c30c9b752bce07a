"""The vision-only baseline of PositiveCoOp (WACV 2025)."""
