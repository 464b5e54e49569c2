"""What every room uses: values, configuration, console, atomic files, ranks, worker processes, errors."""
