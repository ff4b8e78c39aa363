"""What the operations on files take, beside copying the file, dense SVDs and sd-scripts: `make bench`."""
