"""From networks to masks at native resolution: predict, score, export."""
