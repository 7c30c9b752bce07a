"""DualCoOp++ (2023)."""
