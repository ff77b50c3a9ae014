"""The store's commands; `headatlas.store.cli` collects them with those of the other parts."""
