"""Query2Label (2021)."""
