"""Inner loops on low-rank parameters and exact gradients through them; needs torch alone."""
