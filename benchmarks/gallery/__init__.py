"""What `benchmarks.methods` measures: tasks and networks, methods, and how they are trained."""
