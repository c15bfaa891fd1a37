"""Cases, frames and batches."""
