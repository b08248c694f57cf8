"""What Bella is compared with, one file a method."""
