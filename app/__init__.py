"""What is built on the API: the web demo, the offline tour and the weather forecaster."""
