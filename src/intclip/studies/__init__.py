"""Ablations and studies: runs of many recipes, and the tables and figures made of them."""
