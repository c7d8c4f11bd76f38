"""What is in somebody's files: samples, schemas, sizes and splits, before anything is prepared."""
