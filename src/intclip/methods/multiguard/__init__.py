"""MultiGuard (NeurIPS 2022): any method, smoothed and certified."""
