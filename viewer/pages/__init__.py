"""The pages of the viewer: each builds its cards once and fills their frames from the state and the store."""
