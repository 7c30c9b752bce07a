"""Screens the pages are tested at."""

WIDE, PHONE = (1280, 900), (390, 844)
