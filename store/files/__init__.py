"""The files of a store and the places they lie in: local or remote, with hashes, manifests and leases."""
