"""CoCoOp (CVPR 2022): contexts that move with the photo, made multi-label."""
