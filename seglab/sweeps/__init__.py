"""Launchers and sweepers of Hydra: jobs in processes, on this machine or on SLURM."""
