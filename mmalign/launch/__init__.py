"""A run as a job of torchrun, Slurm, Kubernetes or SkyPilot: rendered, never submitted."""
