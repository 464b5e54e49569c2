"""A trained model in the formats that other libraries load, one file per format."""
