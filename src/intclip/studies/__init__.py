"""Ablations and studies: runs of many recipes, with tables and figures."""
