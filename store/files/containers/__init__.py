"""Containers of a segment's arrays: a Zarr v3 group or an HDF5 file, with one protocol."""
