"""DualCoOp (NeurIPS 2022): pairs of learned prompts on the frozen image tower."""
