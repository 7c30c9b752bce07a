"""CoOp (IJCV 2022): learned context on the photo's embedding, made multi-label."""
