"""One file per training framework; each needs that framework alone."""
