"""Gates that a claim about a gate is measured against; nobody would choose them to have the best model."""
