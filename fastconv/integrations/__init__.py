"""One module for each project that fastconv drops into."""
