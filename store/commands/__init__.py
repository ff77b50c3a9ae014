"""The store's commands; `headatlas.store.commands.main` collects them with those of the other parts."""
