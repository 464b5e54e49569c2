"""Where pairs come from, one file per format. Each has its section and `read_drafts(config, seed)`."""
