"""A model that answers many: requests, the engine that works on them, and the dialects in which they come."""
