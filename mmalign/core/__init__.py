"""What every room uses: values, configuration, console, files that are written whole, ranks, errors."""
