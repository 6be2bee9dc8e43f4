"""What is built on the API: the offline demo and its report."""
