"""CGLF-Net (2023)."""
