"""Statistics of a data set: languages, duplicates, image sizes, broken samples."""
