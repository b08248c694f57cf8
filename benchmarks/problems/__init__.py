"""What is learned: one file a data set family."""
