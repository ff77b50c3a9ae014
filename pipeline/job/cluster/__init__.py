"""Jobs whose segments are computed by the workers of a dask cluster, and committed by the process that was started."""
