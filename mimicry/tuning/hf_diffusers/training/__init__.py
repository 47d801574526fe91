"""Parts of a trainer that know nothing of a model's architecture."""
