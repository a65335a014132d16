"""Command lines of scripts/."""
