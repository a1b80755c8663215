"""What experiments run on: data sets, models, training, comparison. Needs ``convsim[lab]``."""
