"""Models of other libraries, measured and fine-tuned by the same code as ours."""
