"""What a segment is on disk: a Zarr v3 group or an HDF5 file of the same arrays, behind one protocol."""
