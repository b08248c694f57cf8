"""What is asked of a learned posterior: one file a task."""
