"""Files of a store, local or remote: hashes, manifests, leases and caches."""
