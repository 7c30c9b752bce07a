"""The adapters of FAME-ViL (CVPR 2023)."""
