"""What is known of one case, and which looks at it its answer takes."""
