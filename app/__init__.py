"""Applications on top of the API: the web demo, the offline tour and the weather forecaster."""
