"""Template matching: retrieval and dense matching."""
